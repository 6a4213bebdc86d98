"""Qwen 3 (dense): Qwen 2 without biases, with norms of query and key heads."""

import dataclasses

from shiftadd_tvm.config_fields import Config, field
from shiftadd_tvm.decoder_model import Decoder
from shiftadd_tvm.families._llama_like import llama_like, tiny
from shiftadd_tvm.families.qwen2 import with_windows

TITLE = "Qwen 3 (dense)"


def read_config(config: Config) -> Decoder:
    """Return the decoder; raise `BadFileError` or `UnsupportedError` with the key at fault."""
    bias = field(config, "attention_bias", bool, False)
    found = llama_like(config, "qwen3", bias=bias, output_bias=bias, head_dim=128, positions=32768)
    attention = dataclasses.replace(
        found.attention, query_norm="self_attn.q_norm", key_norm="self_attn.k_norm"
    )
    return with_windows(dataclasses.replace(found, attention=attention), config)


def tiny_config() -> Config:
    """Return a model with biases, which published ones leave out."""
    return tiny("qwen3", "Qwen3ForCausalLM", attention_bias=True)
