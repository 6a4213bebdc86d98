"""LLaMA 1, 2, 3, SmolLM2, TinyLlama: pre-norm decoder, grouped queries, RoPE, gated SiLU."""

from shiftadd_tvm.config_fields import Config, field
from shiftadd_tvm.decoder_model import Decoder
from shiftadd_tvm.families._llama_like import llama_like, tiny

TITLE = "LLaMA 1, 2, 3 (3.1, 3.2), SmolLM2, TinyLlama"


def read_config(config: Config) -> Decoder:
    """Return the decoder; raise `BadFileError` or `UnsupportedError` with the key at fault."""
    bias = field(config, "attention_bias", bool, False)
    mlp_bias = field(config, "mlp_bias", bool, False)
    return llama_like(config, "llama", bias=bias, output_bias=bias, mlp_bias=mlp_bias)


def tiny_config() -> Config:
    """Return a model of a few hundred kilobytes that uses grouped queries and odd sizes."""
    return tiny(
        "llama",
        "LlamaForCausalLM",
        rope_theta=10000.0,
        hidden_act="silu",
        attention_bias=False,
        mlp_bias=False,
    )
