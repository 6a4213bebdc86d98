"""Gemma 2: Gemma 1 with norms on both sides of each half, soft caps, a window in every other layer."""

import dataclasses

from shiftadd_tvm.config_fields import Config, field, positive, sliding_layers
from shiftadd_tvm.decoder_model import Decoder, Norms
from shiftadd_tvm.families._llama_like import tiny
from shiftadd_tvm.families.gemma import gemma_like

TITLE = "Gemma 2 (2B, 9B, 27B)"


def read_config(config: Config) -> Decoder:
    """Return the decoder; raise `BadFileError` or `UnsupportedError` with the key at fault."""
    found = gemma_like(config, "gemma2", "hidden_activation")
    names = ["full_attention" if i % 2 else "sliding_attention" for i in range(found.layers)]
    window = field(config, "sliding_window", int, 4096)
    sliding = sliding_layers(config, found.layers, names)
    attention = dataclasses.replace(
        found.attention,
        scale=positive(config, "query_pre_attn_scalar", 256.0) ** -0.5,
        cap=_cap(config, "attn_logit_softcapping", 50.0),
    )
    return dataclasses.replace(
        found,
        attention=attention,
        attention_norms=Norms("input_layernorm", branch="post_attention_layernorm"),
        mlp_norms=Norms("pre_feedforward_layernorm", branch="post_feedforward_layernorm"),
        windows=tuple(window if slides else 0 for slides in sliding),
        logit_cap=_cap(config, "final_logit_softcapping", 30.0),
    )


def _cap(config: Config, key: str, default: float) -> float:
    """Return a soft cap; null switches it off."""
    return 0.0 if config.get(key, default) is None else positive(config, key, default)


def tiny_config() -> Config:
    """Return a model whose scores and logits reach their caps."""
    return tiny(
        "gemma2",
        "Gemma2ForCausalLM",
        head_dim=20,
        hidden_activation="gelu_pytorch_tanh",
        query_pre_attn_scalar=15,
        sliding_window=18,
        attn_logit_softcapping=3.0,
        final_logit_softcapping=4.0,
    )
