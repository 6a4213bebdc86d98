"""Qwen 2 and 2.5: LLaMA with biases of q, k and v; windows only where the config asks for them."""

import dataclasses

from shiftadd_tvm.config_fields import Config, field, sliding_layers, window
from shiftadd_tvm.decoder_model import Decoder
from shiftadd_tvm.families._llama_like import llama_like, tiny

TITLE = "Qwen 2, Qwen 2.5"


def read_config(config: Config) -> Decoder:
    """Return the decoder; raise `BadFileError` or `UnsupportedError` with the key at fault."""
    return with_windows(llama_like(config, "qwen2", bias=True, positions=32768), config)


def with_windows(found: Decoder, config: Config) -> Decoder:
    """Return the decoder with the windows of its upper layers, if the config uses them."""
    if not field(config, "use_sliding_window", bool, False):
        return found
    size, first = window(config, 4096), field(config, "max_window_layers", int, 28)
    slides = lambda layer: size > 0 and layer >= first
    names = ["sliding_attention" if slides(i) else "full_attention" for i in range(found.layers)]
    sliding = sliding_layers(config, found.layers, names)
    return dataclasses.replace(found, windows=tuple(size if slid else 0 for slid in sliding))


def tiny_config() -> Config:
    """Return a model whose second layer sees a window."""
    return tiny(
        "qwen2",
        "Qwen2ForCausalLM",
        use_sliding_window=True,
        sliding_window=23,
        max_window_layers=1,
    )
