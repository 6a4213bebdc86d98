"""DINOv2 with registers: learned rows between class token and patches, which have no positions."""

import dataclasses

from shiftadd_tvm.config_fields import Config, field
from shiftadd_tvm.encoder_families._dinov2_like import dinov2_like, dinov2_tiny
from shiftadd_tvm.encoder_model import Encoder, Images
from shiftadd_tvm.errors import BadFileError

TITLE = "DINOv2 with registers (small to giant)"
ARCHITECTURES = ("Dinov2WithRegistersModel", "Dinov2WithRegistersForImageClassification")
FAMILY = "dinov2_with_registers"


def read_config(config: Config) -> Encoder:
    """Return the encoder; raise `BadFileError` or `UnsupportedError` with the key at fault."""
    found = dinov2_like(config, FAMILY, ARCHITECTURES, patch=16)
    count = field(config, "num_register_tokens", int, 4)
    if count < 1:
        raise BadFileError(
            f"config.json has num_register_tokens = {count}, expected at least 1; "
            "use the config.json that belongs to the checkpoint."
        )
    assert isinstance(found.embedded, Images)
    path = f"{FAMILY}.embeddings.register_tokens"
    images = dataclasses.replace(
        found.embedded, registers=path, register_count=count, smoothed=True
    )
    return dataclasses.replace(found, embedded=images)


def tiny_config() -> Config:
    """Return a model with three registers and a classifier over class token and patches."""
    return dinov2_tiny(FAMILY, ARCHITECTURES[1], num_register_tokens=3)
