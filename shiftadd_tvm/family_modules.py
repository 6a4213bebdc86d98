"""What both packages of families do alike: list their modules, and name a config.json in an error.

A family is a module named after Hugging Face's `model_type`; helpers that families share begin with `_`.
"""

import contextlib
import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

from shiftadd_tvm.errors import BadFileError, UnsupportedError


def names(package: str) -> list[str]:
    """Return the model types that the package of that name supports."""
    found = pkgutil.iter_modules(importlib.import_module(package).__path__)
    return sorted(module.name for module in found if not module.name.startswith("_"))


def load(package: str, name: str) -> Any:
    """Return the family of one of the package's `names`."""
    return importlib.import_module(f"{package}.{name}")


def listing(package: str, kind: str) -> list[dict[str, str]]:
    """Return the model type of every family, its `kind`, and the models that it reads."""
    found = ((name, load(package, name).TITLE) for name in names(package))
    return [{"name": name, "kind": kind, "models": title} for name, title in found]


@contextlib.contextmanager
def naming(path: object) -> Iterator[None]:
    """Put `path`, if there is one, in front of what is wrong with a config."""
    try:
        yield
    except (BadFileError, UnsupportedError) as error:
        raise type(error)(f"{path}: {error}" if path else str(error)) from None
