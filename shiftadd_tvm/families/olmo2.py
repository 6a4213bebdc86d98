"""OLMo 2: LLaMA that normalizes what the halves of a block return, and all query and key heads."""

import dataclasses

from shiftadd_tvm.config_fields import Config, field
from shiftadd_tvm.decoder_model import Decoder, Norms
from shiftadd_tvm.families._llama_like import llama_like, tiny

TITLE = "OLMo 2 (1B to 32B)"


def read_config(config: Config) -> Decoder:
    """Return the decoder; raise `BadFileError` or `UnsupportedError` with the key at fault."""
    bias = field(config, "attention_bias", bool, False)
    found = llama_like(config, "olmo2", bias=bias, output_bias=bias, epsilon=1e-5)
    attention = dataclasses.replace(
        found.attention,
        query_norm="self_attn.q_norm",
        key_norm="self_attn.k_norm",
        whole_norm=True,
    )
    return dataclasses.replace(
        found,
        attention=attention,
        attention_norms=Norms(branch="post_attention_layernorm"),
        mlp_norms=Norms(branch="post_feedforward_layernorm"),
    )


def tiny_config() -> Config:
    """Return a model with grouped queries, whose norms are wider for queries than for keys."""
    return tiny("olmo2", "Olmo2ForCausalLM", head_dim=None, tie_word_embeddings=False)
