"""Published model shapes by name, for `bench --synthetic`: data, and how to look it up.

Speed and memory of a decoder do not depend on what its weights are, only on how many there are. The
numbers are those of each model's published `config.json`.
"""

import difflib
from typing import NamedTuple

from shiftadd_tvm import families
from shiftadd_tvm.errors import UsageError
from shiftadd_tvm.families import Config, llama

ROPE_LLAMA_3_2 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


class Llama(NamedTuple):
    """A decoder of the LLaMA family."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    positions: int
    theta: float
    tied: bool = False


class Opt(NamedTuple):
    """A decoder of the OPT family: heads of `hidden / heads`, 4 · hidden inside, tied embeddings."""

    hidden: int
    layers: int
    heads: int


LLAMA = {
    "smollm2-135m": Llama(576, 1536, 30, 9, 3, 49152, 8192, 1e5, True),
    "smollm2-360m": Llama(960, 2560, 32, 15, 5, 49152, 8192, 1e5, True),
    "smollm2-1.7b": Llama(2048, 8192, 24, 32, 32, 49152, 8192, 1.3e5, True),
    "tinyllama-1.1b": Llama(2048, 5632, 22, 32, 4, 32000, 2048, 1e4),
    "llama-2-7b": Llama(4096, 11008, 32, 32, 32, 32000, 4096, 1e4),
    "llama-2-13b": Llama(5120, 13824, 40, 40, 40, 32000, 4096, 1e4),
    "llama-2-70b": Llama(8192, 28672, 80, 64, 8, 32000, 4096, 1e4),
    "llama-3-8b": Llama(4096, 14336, 32, 32, 8, 128256, 8192, 5e5),
    "llama-3-70b": Llama(8192, 28672, 80, 64, 8, 128256, 8192, 5e5),
    "llama-3.2-1b": Llama(2048, 8192, 16, 32, 8, 128256, 131072, 5e5, True),
    "llama-3.2-3b": Llama(3072, 8192, 28, 24, 8, 128256, 131072, 5e5, True),
}
OPT = {
    "opt-125m": Opt(768, 12, 12),
    "opt-350m": Opt(1024, 24, 16),
    "opt-1.3b": Opt(2048, 24, 32),
    "opt-2.7b": Opt(2560, 32, 32),
    "opt-6.7b": Opt(4096, 32, 32),
    "opt-13b": Opt(5120, 40, 40),
    "opt-30b": Opt(7168, 48, 56),
    "opt-66b": Opt(9216, 64, 72),
}
OPT_350M = {"do_layer_norm_before": False, "word_embed_proj_dim": 512}
TINY = "tiny"  # of the tests; no message names it


def names() -> list[str]:
    """Return every published name."""
    return [*LLAMA, *OPT]


def config(name: str) -> Config:
    """Return the Hugging Face config of a published model; `UsageError` names the nearest name."""
    if name == TINY:
        return llama.tiny_config()
    if name in LLAMA:
        return _llama(name, LLAMA[name])
    if name in OPT:
        hidden, layers, heads = OPT[name]
        return {
            "model_type": "opt",
            "hidden_size": hidden,
            "ffn_dim": 4 * hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "vocab_size": 50272,
            "max_position_embeddings": 2048,
            **(OPT_350M if name == "opt-350m" else {}),
        }
    near = difflib.get_close_matches(name.lower(), names(), 1, 0)
    raise UsageError(
        f"--synthetic is {name!r}, the nearest is {near[0]!r}; known are {', '.join(names())}."
    )


def _llama(name: str, shape: Llama) -> Config:
    scaled = {"rope_scaling": ROPE_LLAMA_3_2} if name.startswith("llama-3.2") else {}
    return {
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": shape.positions,
        "rms_norm_eps": 1e-5,
        "rope_theta": shape.theta,
        "tie_word_embeddings": shape.tied,
        **scaled,
    }


def linear_shapes(name: str) -> list[tuple[int, int]]:
    """Return the different (outputs, inputs) of the linears of a published model's block."""
    return list(dict.fromkeys(families.read_config(config(name)).linear_shapes().values()))
