"""Read the keys of a config.json, each checked: what families and formats share.

Errors name the key, what was found and what was expected.
"""

from typing import TypeVar

from shiftadd_tvm.decoder_model import Decoder, Rope
from shiftadd_tvm.errors import BadFileError, UnsupportedError

Config = dict[str, object]
T = TypeVar("T")

# Hugging Face's names -> ours (`ops/activation.py`)
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


def field(config: Config, key: str, kind: type[T], default: T | None = None) -> T:
    """Return `config[key]` as a `kind`, or `default` where it is absent or null; else raise."""
    value = config.get(key)
    if value is None and default is not None:
        return default
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or (isinstance(value, int) and value < 0):
        wanted = {int: "a non-negative integer", float: "a number"}.get(kind, kind.__name__)
        raise BadFileError(
            f"config.json has {key} = {value!r}, expected {wanted}; "
            "use the config.json that belongs to the checkpoint."
        )
    return value


def either(config: Config, *keys: str) -> int:
    """Return the whole number under the first of `keys` that there is."""
    present = [key for key in keys if config.get(key) is not None]
    return field(config, (present or keys)[0], int)


def positive(config: Config, key: str, default: float) -> float:
    """Return a number above 0."""
    value = field(config, key, float, default)
    if not value > 0:
        raise BadFileError(
            f"config.json has {key} = {value}, expected a positive number; "
            "use the config.json that belongs to the checkpoint."
        )
    return value


def window(config: Config, default: int | None) -> int:
    """Return how many positions a layer with a sliding window sees; 0: null, all of them."""
    return (
        0
        if config.get("sliding_window", default) is None
        else field(config, "sliding_window", int, default or 0)
    )


def turned_dims(config: Config, key: str, size: int, default: float) -> int:
    """Return how many of a head's `size` dimensions turn, by the share under `key`."""
    share = field(config, key, float, default)
    if not 0 < share <= 1:
        raise BadFileError(
            f"config.json has {key} = {share}, expected a share of a head's dimensions above 0 and "
            "up to 1; use the config.json that belongs to the checkpoint."
        )
    return int(size * share)


def token_ids(config: Config, key: str, default: int | None = None) -> tuple[int, ...]:
    """Return the ids under `key`, which HF writes as a number, a list or null."""
    value = config.get(key, default)
    ids = [value] if isinstance(value, int) else value or []
    if not isinstance(ids, list) or not all(isinstance(token, int) for token in ids):
        raise BadFileError(f"config.json has {key} = {value!r}, expected a token id or a list.")
    return tuple(ids)


def expect(config: Config, family: str, **supported: object) -> None:
    """Raise `UnsupportedError` for a key whose value is there and is not the supported one."""
    for key, value in supported.items():
        found = config.get(key, value)
        if found != value:
            raise UnsupportedError(
                f"config.json has {key} = {found!r}; {family} is supported with {value!r} only."
            )


def activation(config: Config, key: str, family: str, default: str) -> str:
    """Return our name of the activation function under `key`."""
    found = config.get(key) or default
    if not isinstance(found, str) or found not in ACTIVATIONS:
        raise UnsupportedError(
            f"config.json has {key} {found!r}; {family} supports {', '.join(sorted(ACTIVATIONS))}."
        )
    return ACTIVATIONS[found]


def rope(config: Config, family: str, theta: float = 10000.0) -> Rope:
    """Return the rotary embedding; transformers 5 writes rope_parameters, earlier versions
    rope_theta and rope_scaling. `theta` is the family's default."""
    parameters = object_of(config.get("rope_parameters") or config.get("rope_scaling"))
    return rope_of(parameters, family, field(config, "rope_theta", float, theta))


def object_of(parameters: object) -> Config:
    """Return rope parameters, none of them where there are none."""
    parameters = parameters or {}
    if not isinstance(parameters, dict):
        raise BadFileError(f"config.json has rope parameters {parameters!r}, expected an object.")
    return parameters


def rope_of(parameters: Config, family: str, theta: float) -> Rope:
    """Return the rotary embedding of rope parameters; `theta` is their default."""
    theta = field(parameters, "rope_theta", float, theta)
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if kind == "default":
        return Rope(theta)
    if kind == "linear":
        return Rope(theta, kind, field(parameters, "factor", float))
    if kind == "llama3":
        return Rope(
            theta,
            kind,
            field(parameters, "factor", float),
            field(parameters, "low_freq_factor", float),
            field(parameters, "high_freq_factor", float),
            field(parameters, "original_max_position_embeddings", int),
        )
    raise UnsupportedError(
        f"config.json has rope type {kind!r}; {family} supports 'default', 'linear' and 'llama3'."
    )


def sliding_layers(config: Config, layers: int, pattern: list[str]) -> list[bool]:
    """Return whether each layer sees a window only, by layer_types or else by `pattern`."""
    kinds = config.get("layer_types") or pattern
    known = ("sliding_attention", "full_attention")
    if not isinstance(kinds, list) or len(kinds) != layers or any(k not in known for k in kinds):
        raise BadFileError(
            f"config.json has layer_types {str(kinds)[:80]}, expected {layers} of {known}; "
            "use the config.json that belongs to the checkpoint."
        )
    return [kind == "sliding_attention" for kind in kinds]


def check_sizes(decoder: Decoder) -> Decoder:
    """Return `decoder`; raise `BadFileError` where its sizes make no model."""
    for name in ("layers", "hidden", "heads", "kv_heads", "head_dim", "intermediate", "vocabulary"):
        if getattr(decoder, name) < 1:
            raise BadFileError(f"config.json has a model with {name} = 0, expected at least 1.")
    ropes = [found for layer in range(decoder.layers) if (found := decoder.rope(layer))]
    odd = any((turned.dims or decoder.head_dim) % 2 for turned in ropes)
    if decoder.heads % decoder.kv_heads or odd:
        raise BadFileError(
            f"config.json has {decoder.heads} heads, {decoder.kv_heads} key/value heads and head "
            f"size {decoder.head_dim}; expected whole groups of heads and an even head size."
        )
    return decoder
