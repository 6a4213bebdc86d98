"""What vision transformers share with ViT: names, patches, learned positions, norms before each half."""

from shiftadd_tvm import config_fields
from shiftadd_tvm.config_fields import Config, field
from shiftadd_tvm.decoder_model import Norms, Projection
from shiftadd_tvm.encoder_families import _parts
from shiftadd_tvm.encoder_model import Encoder, Head, Images


def vit_like(
    config: Config,
    family: str,
    *,
    outputs: tuple[Head, ...],
    intermediate: int | None = None,
    tokens: tuple[str, ...] = ("cls_token",),
    patch: int = 16,
    epsilon: float = 1e-12,
) -> Encoder:
    """Return the encoder of a config whose keys are ViT's; `intermediate` where no key has it,
    `patch` and `epsilon` are the family's defaults."""
    base, hidden = f"{family}.", field(config, "hidden_size", int)
    inner = field(config, "intermediate_size", int, intermediate)
    bias = field(config, "qkv_bias", bool, True)
    parts = [Projection(f"attention.attention.{p}", hidden, hidden, bias) for p in PARTS]
    return _parts.checked(
        Encoder(
            layers=field(config, "num_hidden_layers", int),
            hidden=hidden,
            heads=field(config, "num_attention_heads", int),
            epsilon=field(config, "layer_norm_eps", float, epsilon),
            embedded=_images(config, f"{base}embeddings.", tokens, patch),
            attention=(parts[0], parts[1], parts[2]),
            attention_output=Projection("attention.output.dense", hidden, hidden, True),
            mlp_input=Projection("intermediate.dense", inner, hidden, True),
            mlp_output=Projection("output.dense", hidden, inner, True),
            activation=config_fields.activation(config, "hidden_act", family, "gelu"),
            attention_norms=Norms(before="layernorm_before"),
            mlp_norms=Norms(before="layernorm_after"),
            outputs=outputs,
            base=base,
            block=f"{base}encoder.layer.{{index}}",
            final_norm=f"{base}layernorm",
            unread=(f"{base}embeddings.mask_token",),
        )
    )


PARTS = ("query", "key", "value")


def _images(config: Config, path: str, tokens: tuple[str, ...], patch: int) -> Images:
    size, patches = _parts.pair(config, "image_size", 224), _parts.pair(config, "patch_size", patch)
    return Images(
        *size,
        field(config, "num_channels", int, 3),
        *patches,
        projection=f"{path}patch_embeddings.projection",
        tokens=tuple(path + token for token in tokens),
        positions=f"{path}position_embeddings",
    )


def pooled(config: Config, family: str) -> Head:
    """Return ViT's pooler, which base models have."""
    hidden = field(config, "hidden_size", int)
    width = field(config, "pooler_output_size", int, hidden)
    return _parts.pooler(config, f"{family}.pooler.dense", hidden, width)


def classifier(
    config: Config, path: str = "classifier", output: str = "logits", rows: str = "first"
) -> Head:
    """Return a linear over the first token, or over other `rows`."""
    hidden = field(config, "hidden_size", int)
    inputs = 2 * hidden if rows == "first and mean" else hidden
    return Head(output, (Projection(path, _parts.labels(config), inputs, True),), rows=rows)


def tiny(family: str, name: str, **others: object) -> Config:
    """Return a small random model whose sizes all differ: three by two patches."""
    return {
        "model_type": family,
        "architectures": [name],
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 80,
        "image_size": [12, 8],
        "patch_size": 4,
        "id2label": {str(label): f"kind {label}" for label in range(5)},
        "label2id": {f"kind {label}": label for label in range(5)},
        **others,
    }
