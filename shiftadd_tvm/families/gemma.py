"""Gemma 1: LLaMA with scaled embeddings, gains of 1 + w, and GELU."""

import dataclasses

from shiftadd_tvm.config_fields import Config, expect, field
from shiftadd_tvm.decoder_model import Decoder, Norm
from shiftadd_tvm.families._llama_like import llama_like, tiny

TITLE = "Gemma 1 (2B, 7B)"


def read_config(config: Config) -> Decoder:
    """Return the decoder; raise `BadFileError` or `UnsupportedError` with the key at fault."""
    return gemma_like(config, "gemma", "hidden_act")


def gemma_like(config: Config, family: str, key: str) -> Decoder:
    """Return what Gemma 1 and 2 share; the activation stands under `key`."""
    expect(config, family, use_bidirectional_attention=None)
    bias = field(config, "attention_bias", bool, False)
    found = llama_like(
        config,
        family,
        bias=bias,
        output_bias=bias,
        activation=(key, "gelu_pytorch_tanh"),
        head_dim=256,
        positions=8192,
        tied=True,
    )
    norm = Norm("rms", found.norm.epsilon, offset=1.0)
    return dataclasses.replace(found, norm=norm, embedding_scale=found.hidden**0.5)


def tiny_config() -> Config:
    """Return a model whose heads have a size of their own."""
    return tiny("gemma", "GemmaForCausalLM", head_dim=20, hidden_act="gelu_pytorch_tanh")
