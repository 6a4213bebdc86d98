"""Phi-3 and Phi-4 (text): LLaMA whose q, k and v are one projection, gate and up another.

Long-context ones stretch wavelengths by other factors beyond `original_max_position_embeddings`; here
they are models of that many positions, with the factors up to there.
"""

import dataclasses
import math

from shiftadd_tvm import config_fields
from shiftadd_tvm.config_fields import Config, field, object_of, turned_dims, window
from shiftadd_tvm.decoder_model import Attention, Decoder, Projection, Rope
from shiftadd_tvm.errors import BadFileError
from shiftadd_tvm.families import _parts
from shiftadd_tvm.families._llama_like import llama_like, tiny

TITLE = "Phi-3, Phi-3.5, Phi-4 (text, dense)"
FAMILY = "phi3"
LONG = (
    "longrope",
    "su",
    "yarn",
)  # names of one thing: the latter two are transformers' own history


def read_config(config: Config) -> Decoder:
    """Return the decoder; raise `BadFileError` or `UnsupportedError` with the key at fault."""
    plain = {key: value for key, value in config.items() if not key.startswith("rope_")}
    found = llama_like(plain, FAMILY, positions=4096, epsilon=1e-5)
    rope, positions = _rope(config, found)
    heads, mlp = found.attention, found.mlp
    both = Projection("mlp.gate_up_proj", 2 * mlp.intermediate, found.hidden)
    return config_fields.check_sizes(
        dataclasses.replace(
            found,
            positions=positions,
            attention=_fused(heads, found.hidden),
            mlp=dataclasses.replace(mlp, inputs=(both,)),
            ropes=(rope,) * found.layers,
            windows=(window(config, None),) * found.layers,
        )
    )


def _fused(found: Attention, hidden: int) -> Attention:
    queries, keys = found.heads * found.head_dim, found.kv_heads * found.head_dim
    own = lambda start: _parts.whole_heads(0, start, found.kv_heads, found.head_dim)
    return dataclasses.replace(
        found,
        inputs=(Projection("self_attn.qkv_proj", queries + 2 * keys, hidden),),
        query=_parts.whole_heads(0, 0, found.heads, found.head_dim),
        key=own(queries),
        value=own(queries + keys),
    )


def _rope(config: Config, found: Decoder) -> tuple[Rope, int]:
    """Return the rotary embedding, and for how many positions it holds."""
    parameters = object_of(config.get("rope_parameters") or config.get("rope_scaling"))
    share = field(config, "partial_rotary_factor", float, 1.0)
    dims = turned_dims(parameters, "partial_rotary_factor", found.head_dim, share)
    theta = field(config, "rope_theta", float, 10000.0)
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if kind not in LONG:
        return dataclasses.replace(
            config_fields.rope_of(parameters, FAMILY, theta), dims=dims
        ), found.positions
    theta = field(parameters, "rope_theta", float, theta)
    original = field(config, "original_max_position_embeddings", int, 4096)
    original = max(field(parameters, "original_max_position_embeddings", int, original), 2)
    factors = parameters.get("short_factor")
    if (
        not isinstance(factors, list)
        or len(factors) != dims // 2
        or not all(isinstance(f, int | float) and f > 0 for f in factors)
    ):
        raise BadFileError(
            f"config.json has short_factor {str(factors)[:80]}, expected {dims // 2} positive "
            "numbers; use the config.json that belongs to the checkpoint."
        )
    stretch = found.positions / original
    scale = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
    scale = field(parameters, "attention_factor", float, scale)
    rope = Rope(
        theta,
        "factors",
        dims=dims,
        factors=tuple(map(float, factors)),
        scale=scale,
    )
    return rope, min(found.positions, original)


def tiny_config() -> Config:
    """Return a model with a window and the long-context rotary embedding."""
    return tiny(
        FAMILY,
        "Phi3ForCausalLM",
        head_dim=None,
        sliding_window=30,
        original_max_position_embeddings=128,
        pad_token_id=0,
        rope_scaling={
            "type": "longrope",
            "short_factor": [1.0 + 0.1 * index for index in range(12)],
            "long_factor": [2.0 + 0.5 * index for index in range(12)],
        },
    )
