"""Model families: one file each, named after Hugging Face's `model_type`, pure data.

A family says how its `config.json` reads: as a `Decoder` (`decoder_model.py`), which holds how its
weights are named and which linears share an input. Both rooms read it, so it imports neither torch
nor tvm. Every family module defines `REQUIRED`; helpers that families share begin with `_`.
"""

import difflib
from typing import Protocol

from shiftadd_tvm import encoder_families, family_modules
from shiftadd_tvm.config_fields import Config
from shiftadd_tvm.decoder_model import Decoder
from shiftadd_tvm.errors import BadFileError, UnsupportedError

__all__ = ["Config", "Decoder", "Family", "listing", "load", "names", "read_config"]

REQUIRED = ("TITLE", "read_config", "tiny_config")


class Family(Protocol):
    """What a module in this package provides; `TITLE` names the models that it reads."""

    TITLE: str

    def read_config(self, config: Config) -> Decoder:
        """Return the decoder that `config` describes; raise for what is not supported."""

    def tiny_config(self) -> Config:
        """Return the config of a small random model of this family, for tests."""


def names() -> list[str]:
    """Return the supported model types."""
    return family_modules.names(__name__)


def listing() -> list[dict[str, str]]:
    """Return the model type of every family, what it is, and the models that it reads."""
    return family_modules.listing(__name__, "decoder")


def load(config: Config) -> Family:
    """Return the family module for `config`; raise `UnsupportedError` naming the nearest one."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise BadFileError(
            f"config.json has model_type {model_type!r}, expected a name such as 'llama'; "
            "use the config.json that belongs to the checkpoint."
        )
    if encoder_families.is_encoder(config):
        raise UnsupportedError(
            f"Model type {model_type!r} is an encoder, expected a language model here; compile it and "
            "call the artifact (docs/models.md)."
        )
    if model_type not in names():
        known = [*names(), *encoder_families.names()]
        near = difflib.get_close_matches(model_type, known, 1, 0.4)
        hint = f"the nearest is {near[0]!r}; " if near else ""
        raise UnsupportedError(
            f"Model type {model_type!r} is not supported: {hint}supported are {', '.join(known)}."
        )
    family: Family = family_modules.load(__name__, model_type)
    return family


def read_config(config: Config, path: object = None) -> Decoder:
    """Return the decoder that a HF `config` describes, whatever its family; errors name `path`."""
    with family_modules.naming(path):
        return load(config).read_config(config)
