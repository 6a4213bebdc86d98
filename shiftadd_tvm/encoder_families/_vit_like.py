"""What vision transformers share with ViT: names, patches, learned positions, norms before each half."""

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
    path = f"{family}.embeddings."
    return _parts.encoder(
        config,
        family,
        "attention.attention",
        field(config, "intermediate_size", int, intermediate),
        bias=field(config, "qkv_bias", bool, True),
        epsilon=epsilon,
        embedded=_images(config, path, tokens, patch),
        attention_norms=Norms(before="layernorm_before"),
        mlp_norms=Norms(before="layernorm_after"),
        outputs=outputs,
        final_norm=f"{family}.layernorm",
        unread=(f"{path}mask_token",),
    )


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
    return _parts.tiny(family, name, **{"image_size": [12, 8], "patch_size": 4, **others})
