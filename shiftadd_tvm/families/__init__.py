"""Model families: one file each, named after Hugging Face's `model_type`, pure data.

A family says how its `config.json` reads, how its weights are named, and which linears share an
input. Both rooms read it, so it imports neither torch nor tvm. Every family module defines
`REQUIRED`.
"""

import difflib
import importlib
import pkgutil
from dataclasses import dataclass
from typing import Protocol, TypeVar

from shiftadd_tvm.errors import BadFileError, UnsupportedError

REQUIRED = ("read_config", "tiny_config")

Config = dict[str, object]
T = TypeVar("T")


@dataclass(frozen=True)
class Rope:
    """Rotary embedding: theta and, for the kinds "linear" and "llama3", their parameters."""

    theta: float
    kind: str = "default"
    factor: float = 1.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_positions: int = 0


@dataclass(frozen=True)
class InputGroup:
    """Linears (paths inside a block, in order) that read one activation: quantized together."""

    linears: tuple[str, ...]


@dataclass(frozen=True)
class Decoder:
    """What the later stages need to know of a decoder-only transformer."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    positions: int
    norm_epsilon: float
    rope: Rope
    tied_embeddings: bool
    attention_bias: bool
    output_bias: bool  # of the attention's output projection
    mlp_bias: bool
    bos: tuple[int, ...]
    eos: tuple[int, ...]
    block: str = "model.layers.{index}"
    embedding: str = "model.embed_tokens"
    final_norm: str = "model.norm"
    head: str = "lm_head"
    groups: tuple[InputGroup, ...] = ()

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """Return (outputs, inputs) of each linear of a block by its path inside the block."""
        attention, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "self_attn.q_proj": (attention, self.hidden),
            "self_attn.k_proj": (keys, self.hidden),
            "self_attn.v_proj": (keys, self.hidden),
            "self_attn.o_proj": (self.hidden, attention),
            "mlp.gate_proj": (self.intermediate, self.hidden),
            "mlp.up_proj": (self.intermediate, self.hidden),
            "mlp.down_proj": (self.hidden, self.intermediate),
        }

    def biased(self, linear: str) -> bool:
        """Tell whether a linear of a block (path inside the block) has a bias."""
        if linear == "self_attn.o_proj":
            return self.output_bias
        return self.attention_bias if linear.startswith("self_attn.") else self.mlp_bias

    def blocks(self) -> list[str]:
        """Return the module path of every block."""
        return [self.block.format(index=index) for index in range(self.layers)]

    def input_groups(self) -> list[tuple[str, ...]]:
        """Return the full module paths of every group of linears that share an input, in order."""
        return [
            tuple(f"{block}.{linear}" for linear in group.linears)
            for block in self.blocks()
            for group in self.groups
        ]

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor that a checkpoint of this model holds, by HF name."""
        shapes: dict[str, tuple[int, ...]] = {
            f"{self.embedding}.weight": (self.vocabulary, self.hidden),
            f"{self.final_norm}.weight": (self.hidden,),
        }
        if not self.tied_embeddings:
            shapes[f"{self.head}.weight"] = (self.vocabulary, self.hidden)
        for block in self.blocks():
            shapes[f"{block}.input_layernorm.weight"] = (self.hidden,)
            shapes[f"{block}.post_attention_layernorm.weight"] = (self.hidden,)
            for linear, shape in self.linear_shapes().items():
                shapes[f"{block}.{linear}.weight"] = shape
                if self.biased(linear):
                    shapes[f"{block}.{linear}.bias"] = shape[:1]
        return shapes


class Family(Protocol):
    """What a module in this package provides."""

    def read_config(self, config: Config) -> Decoder:
        """Return the decoder that `config` describes; raise for what is not supported."""

    def tiny_config(self) -> Config:
        """Return the config of a small random model of this family, for tests."""


def names() -> list[str]:
    """Return the supported model types."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(config: Config) -> Family:
    """Return the family module for `config`; raise `UnsupportedError` naming the nearest one."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise BadFileError(
            f"config.json has model_type {model_type!r}, expected a name such as 'llama'; "
            "use the config.json that belongs to the checkpoint."
        )
    if model_type not in names():
        near = difflib.get_close_matches(model_type, names(), 1, 0.4)
        hint = f"the nearest is {near[0]!r}; " if near else ""
        raise UnsupportedError(
            f"Model type {model_type!r} is not supported: {hint}supported are {', '.join(names())}."
        )
    family: Family = importlib.import_module(f"{__name__}.{model_type}")
    return family


def read_config(config: Config, path: object = None) -> Decoder:
    """Return the decoder that a HF `config` describes, whatever its family; errors name `path`."""
    try:
        return load(config).read_config(config)
    except (BadFileError, UnsupportedError) as error:
        raise type(error)(f"{path}: {error}" if path else str(error)) from None


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


def token_ids(config: Config, key: str) -> tuple[int, ...]:
    """Return the ids under `key`, which HF writes as a number, a list or null."""
    value = config.get(key)
    ids = [value] if isinstance(value, int) else value or []
    if not isinstance(ids, list) or not all(isinstance(token, int) for token in ids):
        raise BadFileError(f"config.json has {key} = {value!r}, expected a token id or a list.")
    return tuple(ids)
