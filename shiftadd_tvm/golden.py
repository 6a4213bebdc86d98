"""The golden prompts: four fixed English texts of 16 tokens and the dequantized model's logits.

They begin as texts do where the model is used: with BOS, if its tokenizer adds one. Without it the
states of some models are of another kind: Gemma-3-270M at 4 bits amplifies the rounding of activations
forty times as much. The texts are longer than 16 tokens of any tokenizer in use and cut there; ids that
are still too few are repeated. A model without a tokenizer.json gets random ids of a fixed seed. The
logits are computed with one thread, since the order of sums depends on the number of threads.
"""

from collections.abc import Mapping

import numpy as np

from shiftadd_tvm.dequantized import DequantizedModel
from shiftadd_tvm.errors import BadFileError
from shiftadd_tvm.families import Config
from shiftadd_tvm.packed import Golden, PackedModel
from shiftadd_tvm.tokenizer_file import TOKENIZER, first_token, open_tokenizer, read_config

TOKENS = 16
PROMPTS = (
    "The capital of France is Paris, a city on the river Seine that has been a centre of trade, "
    "art and learning for many centuries.",
    "Once upon a time there lived an old clockmaker who could repair everything in the village "
    "except the great clock in the tower of the church.",
    "To boil an egg, bring a pot of water to the boil, lower the egg into it with a spoon, wait "
    "for seven minutes and put it under cold water.",
    "Water is made of hydrogen and oxygen; below zero degrees it turns to ice, which floats "
    "because it is less dense than the liquid around it.",
)
SEED = 0

Array = np.ndarray


def prompt_ids(files: Mapping[str, bytes], vocabulary: int) -> Array:
    """Return the ids of the prompts, int32 (4, 16), by the tokenizer files of a checkpoint."""
    content = files.get(TOKENIZER)
    if content is None:
        generator = np.random.Generator(np.random.PCG64(SEED))
        return generator.integers(0, vocabulary, (len(PROMPTS), TOKENS), dtype=np.int32)
    encoder = open_tokenizer(content, "The checkpoint")
    first = first_token(encoder, read_config(files.get, "The checkpoint"))
    begin = [] if first is None else [first]
    encoded = [begin + encoder.encode(text, add_special_tokens=False).ids for text in PROMPTS]
    ids = np.array([np.resize(row or [0], TOKENS) for row in encoded], np.int32)
    if ids.max() >= vocabulary:
        raise BadFileError(
            f"tokenizer.json gives token id {ids.max()}, expected ids below the vocab_size "
            f"{vocabulary} of config.json; use the tokenizer that belongs to the checkpoint."
        )
    return ids


def check_config(config: Config) -> None:
    """Raise `BadFileError` where the logits could not be computed for this config, before work."""
    from shiftadd_tvm import reference  # loads torch

    reference.check_config(config)


def compute(packed: PackedModel, files: Mapping[str, bytes]) -> Golden:
    """Return the prompts' ids, by the tokenizer `files`, and the logits of `packed`, dequantized."""
    from shiftadd_tvm.reference import ReferenceModel, one_thread  # loads torch

    ids = prompt_ids(files, packed.decoder.vocabulary)
    with one_thread():
        model = ReferenceModel(DequantizedModel(packed))
        hidden = model.hidden(ids.astype(np.int64))
        logits = model.logits(hidden.reshape(ids.size, -1)).numpy()
    return Golden(ids, logits.reshape(*ids.shape, -1))
