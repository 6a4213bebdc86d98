"""Gemma 3 (text): local and global layers with a theta each, norms on both sides of each half."""

import dataclasses

from shiftadd_tvm.config_fields import (
    Config,
    expect,
    field,
    object_of,
    positive,
    rope_of,
    sliding_layers,
)
from shiftadd_tvm.decoder_model import Decoder, Norm, Norms, Rope
from shiftadd_tvm.families._llama_like import llama_like, tiny

TITLE = "Gemma 3 (text: 270M, 1B)"
FAMILY = "gemma3_text"
PATTERN = 6  # every sixth layer sees all positions


def read_config(config: Config) -> Decoder:
    """Return the decoder; raise `BadFileError` or `UnsupportedError` with the key at fault."""
    expect(config, FAMILY, use_bidirectional_attention=False, attn_logit_softcapping=None)
    bias = field(config, "attention_bias", bool, False)
    local, whole = _ropes(config)
    plain = {key: value for key, value in config.items() if not key.startswith("rope_")}
    found = llama_like(
        plain,
        FAMILY,
        bias=bias,
        output_bias=bias,
        activation=("hidden_activation", "gelu_pytorch_tanh"),
        head_dim=256,
        positions=131072,
        tied=True,
    )
    every = max(field(config, "sliding_window_pattern", int, PATTERN), 1)
    kinds = [(index + 1) % every != 0 for index in range(found.layers)]
    names = ["sliding_attention" if sliding else "full_attention" for sliding in kinds]
    sliding = sliding_layers(config, found.layers, names)
    window = field(config, "sliding_window", int, 4096)
    return dataclasses.replace(
        found,
        attention=dataclasses.replace(
            found.attention,
            scale=positive(config, "query_pre_attn_scalar", 256.0) ** -0.5,
            query_norm="self_attn.q_norm",
            key_norm="self_attn.k_norm",
        ),
        norm=Norm("rms", found.norm.epsilon, offset=1.0),
        attention_norms=Norms("input_layernorm", branch="post_attention_layernorm"),
        mlp_norms=Norms("pre_feedforward_layernorm", branch="post_feedforward_layernorm"),
        ropes=tuple(local if slides else whole for slides in sliding),
        windows=tuple(window if slides else 0 for slides in sliding),
        embedding_scale=found.hidden**0.5,
        logit_cap=field(config, "final_logit_softcapping", float, 0.0),
    )


def _ropes(config: Config) -> tuple[Rope, Rope]:
    """Return the rotary embeddings of local and of global layers; transformers 5 writes both into
    rope_parameters, earlier versions rope_local_base_freq, rope_theta and rope_scaling."""
    local = field(config, "rope_local_base_freq", float, 10000.0)
    whole = field(config, "rope_theta", float, 1000000.0)
    both = object_of(config.get("rope_parameters"))
    scaled = both.get("full_attention") or config.get("rope_scaling")
    return (
        rope_of(object_of(both.get("sliding_attention")), FAMILY, local),
        rope_of(object_of(scaled), FAMILY, whole),
    )


def tiny_config() -> Config:
    """Return a model with a window that is shorter than a page and heads of an own size."""
    return tiny(
        FAMILY,
        "Gemma3ForCausalLM",
        head_dim=16,
        num_key_value_heads=1,
        hidden_activation="gelu_pytorch_tanh",
        query_pre_attn_scalar=20,
        sliding_window=21,
        layer_types=["sliding_attention", "full_attention"],
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
            "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 50000.0},
        },
    )
