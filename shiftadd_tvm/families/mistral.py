"""Mistral: LLaMA with a window that every layer sees."""

import dataclasses

from shiftadd_tvm.config_fields import Config, window
from shiftadd_tvm.decoder_model import Decoder
from shiftadd_tvm.families._llama_like import llama_like, tiny

TITLE = "Mistral 7B (all versions), Mistral NeMo"


def read_config(config: Config) -> Decoder:
    """Return the decoder; raise `BadFileError` or `UnsupportedError` with the key at fault."""
    found = llama_like(config, "mistral", positions=131072)
    return dataclasses.replace(found, windows=(window(config, 4096),) * found.layers)


def tiny_config() -> Config:
    """Return a model whose window ends inside a page."""
    return tiny("mistral", "MistralForCausalLM", sliding_window=19, tie_word_embeddings=False)
