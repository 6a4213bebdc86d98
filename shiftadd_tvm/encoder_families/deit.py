"""DeiT: ViT with a second learned token, from which a teacher's classifier reads."""

from shiftadd_tvm.config_fields import Config
from shiftadd_tvm.encoder_families import _parts
from shiftadd_tvm.encoder_families._vit_like import classifier, pooled, tiny, vit_like
from shiftadd_tvm.encoder_model import Encoder, Head

TITLE = "DeiT, distilled (any size)"
ARCHITECTURES = (
    "DeiTModel",
    "DeiTForImageClassification",
    "DeiTForImageClassificationWithTeacher",
)
FAMILY = "deit"
TOKENS = ("cls_token", "distillation_token")


def read_config(config: Config) -> Encoder:
    """Return the encoder; raise `BadFileError` or `UnsupportedError` with the key at fault."""
    name = _parts.architecture(config, FAMILY, ARCHITECTURES)
    if name == ARCHITECTURES[0]:
        outputs: tuple[Head, ...] = (pooled(config, FAMILY),)
    elif name == ARCHITECTURES[1]:
        outputs = (classifier(config),)
    else:
        own = classifier(config, "cls_classifier", "cls_logits")
        other = classifier(config, "distillation_classifier", "distillation_logits", rows="second")
        outputs = (own, other, Head("logits", of=(own.output, other.output)))
    return vit_like(config, FAMILY, outputs=outputs, tokens=TOKENS)


def tiny_config() -> Config:
    """Return a model with both classifiers."""
    return tiny(FAMILY, ARCHITECTURES[2])
