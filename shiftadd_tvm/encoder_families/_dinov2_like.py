"""What DINOv2's families share: ViT whose halves are scaled before they are added; the giant ones have a
gated MLP."""

import dataclasses

from shiftadd_tvm.config_fields import Config, field
from shiftadd_tvm.decoder_model import Norms, Projection
from shiftadd_tvm.encoder_families import _parts
from shiftadd_tvm.encoder_families._vit_like import classifier, tiny, vit_like
from shiftadd_tvm.encoder_model import Encoder, Head


def dinov2_like(
    config: Config, family: str, architectures: tuple[str, ...], patch: int
) -> Encoder:
    """Return the encoder of a config whose keys are DINOv2's; `patch` is the family's default."""
    base = _parts.architecture(config, family, architectures) == architectures[0]
    head = Head("pooler_output") if base else classifier(config, rows="first and mean")
    hidden = field(config, "hidden_size", int)
    inner = hidden * field(config, "mlp_ratio", int, 4)
    found = vit_like(config, family, outputs=(head,), intermediate=inner, patch=patch, epsilon=1e-6)
    up, down = (
        Projection("mlp.fc1", inner, hidden, True),
        Projection("mlp.fc2", hidden, inner, True),
    )
    gated = field(config, "use_swiglu_ffn", bool, False)
    if gated:
        inner = (inner * 2 // 3 + 7) // 8 * 8
        up = Projection("mlp.weights_in", 2 * inner, hidden, True)
        down = Projection("mlp.weights_out", hidden, inner, True)
    return _parts.checked(
        dataclasses.replace(
            found,
            mlp_input=up,
            mlp_output=down,
            gated=gated,
            activation="silu" if gated else found.activation,
            attention_norms=Norms(before="norm1"),
            mlp_norms=Norms(before="norm2"),
            attention_scale="layer_scale1.lambda1",
            mlp_scale="layer_scale2.lambda1",
        )
    )


def dinov2_tiny(family: str, name: str, **others: object) -> Config:
    """Return a small random model with square images."""
    return tiny(family, name, mlp_ratio=2, image_size=12, **others)
