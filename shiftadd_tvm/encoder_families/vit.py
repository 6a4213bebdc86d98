"""ViT: patches, one class token, norms before attention and MLP, a pooler or a classifier."""

from shiftadd_tvm.config_fields import Config
from shiftadd_tvm.encoder_families import _parts
from shiftadd_tvm.encoder_families._vit_like import classifier, pooled, tiny, vit_like
from shiftadd_tvm.encoder_model import Encoder

TITLE = "ViT, DeiT without distillation (any size)"
ARCHITECTURES = ("ViTModel", "ViTForImageClassification")
FAMILY = "vit"


def read_config(config: Config) -> Encoder:
    """Return the encoder; raise `BadFileError` or `UnsupportedError` with the key at fault."""
    base = _parts.architecture(config, FAMILY, ARCHITECTURES) == ARCHITECTURES[0]
    return vit_like(
        config, FAMILY, outputs=(pooled(config, FAMILY) if base else classifier(config),)
    )


def tiny_config() -> Config:
    """Return a base model with a pooler."""
    return tiny(FAMILY, ARCHITECTURES[0])
