"""What encoder families share: names in a block, architectures, pairs of sizes, checks."""

from typing import Any

from shiftadd_tvm import config_fields
from shiftadd_tvm.config_fields import Config, field
from shiftadd_tvm.decoder_model import Projection
from shiftadd_tvm.encoder_model import Encoder, Head, Images, Words
from shiftadd_tvm.errors import BadFileError, UnsupportedError

LINEARS = ("query", "key", "value")
LABELS = 2  # of a classifier whose config.json names none, as transformers has it


def architecture(config: Config, family: str, known: tuple[str, ...]) -> str:
    """Return which of the `known` classes of transformers a checkpoint is of, the first where its
    config.json says nothing."""
    found = config.get("architectures") or [known[0]]
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise BadFileError(
            f"config.json has architectures {found!r}, expected a list of names; "
            "use the config.json that belongs to the checkpoint."
        )
    if found[0] not in known:
        raise UnsupportedError(
            f"config.json has architectures {found!r}; {family} is supported as {', '.join(known)}."
        )
    return str(found[0])


def labels(config: Config) -> int:
    """Return the number of classes of a classifier."""
    named = config.get("id2label")
    if isinstance(named, dict) and named:
        return len(named)
    return field(config, "num_labels", int, LABELS)


def pair(config: Config, key: str, default: int) -> tuple[int, int]:
    """Return height and width under `key`, which are one number where they are alike."""
    value = config.get(key, default)
    sizes = list(value) if isinstance(value, list | tuple) else [value, value]
    if len(sizes) != 2 or any(type(size) is not int or size < 1 for size in sizes):
        raise BadFileError(
            f"config.json has {key} = {value!r}, expected a positive number of pixels, or two; "
            "use the config.json that belongs to the checkpoint."
        )
    return int(str(sizes[0])), int(str(sizes[1]))


def encoder(
    config: Config,
    family: str,
    attention: str,
    inner: int,
    *,
    epsilon: float,
    bias: bool = True,
    **others: Any,
) -> Encoder:
    """Return an encoder whose blocks have the names that BERT and ViT share.

    `attention` is the module of query, key and value, with a `bias` or none; `inner` the width inside
    the MLP; `epsilon` the family's default. `others` are the fields in which families differ.
    """
    base, hidden = f"{family}.", field(config, "hidden_size", int)
    parts = [Projection(f"{attention}.{linear}", hidden, hidden, bias) for linear in LINEARS]
    return checked(
        Encoder(
            layers=field(config, "num_hidden_layers", int),
            hidden=hidden,
            heads=field(config, "num_attention_heads", int),
            epsilon=field(config, "layer_norm_eps", float, epsilon),
            attention=(parts[0], parts[1], parts[2]),
            attention_output=Projection("attention.output.dense", hidden, hidden, True),
            mlp_input=Projection("intermediate.dense", inner, hidden, True),
            mlp_output=Projection("output.dense", hidden, inner, True),
            activation=config_fields.activation(config, "hidden_act", family, "gelu"),
            base=base,
            block=f"{base}encoder.layer.{{index}}",
            **others,
        )
    )


def tiny(family: str, name: str, **others: object) -> Config:
    """Return a small random model whose sizes all differ."""
    return {
        "model_type": family,
        "architectures": [name],
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 80,
        "id2label": {str(label): f"kind {label}" for label in range(5)},
        "label2id": {f"kind {label}": label for label in range(5)},
        **others,
    }


def pooler(config: Config, path: str, hidden: int, width: int | None = None) -> Head:
    """Return the head that BERT and ViT have for the first token: a linear and its activation."""
    function = config.get("pooler_act") or "tanh"
    known = {"tanh": "tanh", **config_fields.ACTIVATIONS}
    if not isinstance(function, str) or function not in known:
        raise UnsupportedError(
            f"config.json has pooler_act {function!r}; supported are {', '.join(sorted(known))}."
        )
    linear = Projection(path, width or hidden, hidden, bias=True)
    return Head("pooler_output", (linear, known[function]), optional=True)


def checked(encoder: Encoder) -> Encoder:
    """Return `encoder`; raise `BadFileError` where its sizes make no model."""
    sizes = {
        "layers": encoder.layers,
        "hidden_size": encoder.hidden,
        "heads": encoder.heads,
        "intermediate_size": encoder.mlp_output.inputs,
        **_input_sizes(encoder.embedded),
    }
    for head in encoder.outputs:
        sizes |= {f"{head.output} columns": s[0] for s in head.tensor_shapes().values()}
    for name, size in sizes.items():
        if size < 1:
            raise BadFileError(
                f"config.json has a model with {name} = {size}, expected at least 1."
            )
    if encoder.hidden % encoder.heads:
        raise BadFileError(
            f"config.json has {encoder.heads} heads and hidden_size {encoder.hidden}, expected heads "
            "of one size; use the config.json that belongs to the checkpoint."
        )
    return encoder


def _input_sizes(embedded: Images | Words) -> dict[str, int]:
    if isinstance(embedded, Words):
        found = {"vocab_size": embedded.vocabulary, "positions": embedded.limit}
        return {**found, "type_vocab_size": embedded.kinds} if embedded.types else found
    size, patch = (embedded.height, embedded.width), (embedded.patch_height, embedded.patch_width)
    if size[0] % patch[0] or size[1] % patch[1]:
        raise BadFileError(
            f"config.json has images of {size[0]} x {size[1]} pixels and patches of {patch[0]} x "
            f"{patch[1]}, expected whole patches; give image_size as a multiple of patch_size."
        )
    return {"num_channels": embedded.channels}
