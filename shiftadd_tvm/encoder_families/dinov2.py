"""DINOv2: ViT whose halves are scaled before they are added; the giant one has a gated MLP."""

from shiftadd_tvm.config_fields import Config
from shiftadd_tvm.encoder_families._dinov2_like import dinov2_like, dinov2_tiny
from shiftadd_tvm.encoder_model import Encoder

TITLE = "DINOv2 (small to giant)"
ARCHITECTURES = ("Dinov2Model", "Dinov2ForImageClassification")
FAMILY = "dinov2"


def read_config(config: Config) -> Encoder:
    """Return the encoder; raise `BadFileError` or `UnsupportedError` with the key at fault."""
    return dinov2_like(config, FAMILY, ARCHITECTURES, patch=14)


def tiny_config() -> Config:
    """Return a model with a classifier over the class token and the mean of the patches."""
    return dinov2_tiny(FAMILY, ARCHITECTURES[1])
