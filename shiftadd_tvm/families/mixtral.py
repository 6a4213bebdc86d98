"""Mixtral: Mistral with a router that sends each token through a few of a block's MLPs."""

import dataclasses

from shiftadd_tvm.config_fields import Config, field, window
from shiftadd_tvm.decoder_model import Decoder, Experts, Projection
from shiftadd_tvm.errors import BadFileError
from shiftadd_tvm.families._llama_like import llama_like, tiny

TITLE = "Mixtral 8x7B, 8x22B"


def read_config(config: Config) -> Decoder:
    """Return the decoder; raise `BadFileError` or `UnsupportedError` with the key at fault."""
    found = llama_like(config, "mixtral", positions=131072, epsilon=1e-5, theta=1e6)
    hidden, inner = found.hidden, found.intermediate
    mlp = dataclasses.replace(
        found.mlp,
        inputs=(Projection("w1", inner, hidden), Projection("w3", inner, hidden)),
        output=Projection("w2", hidden, inner),
    )
    count, chosen = (
        field(config, "num_local_experts", int, 8),
        field(config, "num_experts_per_tok", int, 2),
    )
    if not 1 <= chosen <= count:
        raise BadFileError(
            f"config.json has num_experts_per_tok = {chosen} of num_local_experts = {count}, expected "
            "1 to all of them; use the config.json that belongs to the checkpoint."
        )
    return dataclasses.replace(
        found,
        mlp=mlp,
        experts=Experts(count, chosen, "block_sparse_moe", "mlp"),
        windows=(window(config, None),) * found.layers,
    )


def tiny_config() -> Config:
    """Return a model with four experts, of which two are chosen, and a window."""
    return tiny(
        "mixtral",
        "MixtralForCausalLM",
        intermediate_size=96,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=19,
        tie_word_embeddings=False,
    )
