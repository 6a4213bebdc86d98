"""Encoder families: one file each, named after Hugging Face's `model_type`, pure data.

As `families/` for decoders: a family says how its `config.json` reads as an `Encoder`
(`encoder_model.py`). Every module defines `REQUIRED`; helpers that families share begin with `_`.
"""

from typing import Protocol

from shiftadd_tvm import family_modules
from shiftadd_tvm.config_fields import Config
from shiftadd_tvm.encoder_model import Encoder

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
    return family_modules.names(__name__)


def listing() -> list[dict[str, str]]:
    """Return the model type of every family, what it is, and the models that it reads."""
    return family_modules.listing(__name__, "encoder")


def is_encoder(config: Config) -> bool:
    """Tell whether `config` is that of an encoder which is supported, as far as its type says."""
    return config.get("model_type") in names()


def load(model_type: str) -> Family:
    """Return the family of one of the `names`."""
    family: Family = family_modules.load(__name__, model_type)
    return family


def read_config(config: Config, path: object = None) -> Encoder:
    """Return the encoder that the `config` of an encoder describes; errors name `path`."""
    with family_modules.naming(path):
        return load(str(config["model_type"])).read_config(config)
