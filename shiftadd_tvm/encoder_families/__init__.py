"""Encoder families: one file each, named after Hugging Face's `model_type`, pure data.

As `families/` for decoders: a family says how its `config.json` reads as an `Encoder`
(`encoder_model.py`). Every module defines `REQUIRED`; helpers that families share begin with `_`.
"""

import importlib
import pkgutil
from typing import Protocol

from shiftadd_tvm.config_fields import Config
from shiftadd_tvm.encoder_model import Encoder
from shiftadd_tvm.errors import BadFileError, UnsupportedError

REQUIRED = ("TITLE", "ARCHITECTURES", "read_config", "tiny_config")


class Family(Protocol):
    """What a module in this package provides; `ARCHITECTURES` are the classes of transformers whose
    checkpoints it reads, the base model first."""

    TITLE: str
    ARCHITECTURES: tuple[str, ...]

    def read_config(self, config: Config) -> Encoder:
        """Return the encoder that `config` describes; raise for what is not supported."""

    def tiny_config(self) -> Config:
        """Return the config of a small random model of this family, for tests."""


def names() -> list[str]:
    """Return the supported model types."""
    found = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in found if not name.startswith("_"))


def listing() -> list[dict[str, str]]:
    """Return the model type of every family, what it is, and the models that it reads."""
    return [{"name": name, "kind": "encoder", "models": load(name).TITLE} for name in names()]


def is_encoder(config: Config) -> bool:
    """Tell whether `config` is that of an encoder which is supported, as far as its type says."""
    return config.get("model_type") in names()


def load(model_type: str) -> Family:
    """Return the family of one of the `names`."""
    family: Family = importlib.import_module(f"{__name__}.{model_type}")
    return family


def read_config(config: Config, path: object = None) -> Encoder:
    """Return the encoder that the `config` of an encoder describes; errors name `path`."""
    try:
        return load(str(config["model_type"])).read_config(config)
    except (BadFileError, UnsupportedError) as error:
        raise type(error)(f"{path}: {error}" if path else str(error)) from None
