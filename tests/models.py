"""Tiny models for the tests: random weights, a real tokenizer, everything seeded and offline."""

import json
from pathlib import Path

import numpy as np

from shiftadd_tvm import families
from shiftadd_tvm.families import llama
from shiftadd_tvm.tensorfile import from_float32, write_tensors

# Byte-level: every byte, three special tokens; no merges fit into a vocabulary of 259.
SPECIAL = ("<unk>", "<s>", "</s>")
STD = 0.2  # ten times the usual, so that the logits of different tokens differ clearly


def tiny_config(**overrides: object) -> dict[str, object]:
    """Return the config of a tiny llama; `overrides` replace keys."""
    return {**llama.tiny_config(), **overrides}


def tiny_tensors(config: dict[str, object], seed: int = 0) -> dict[str, np.ndarray]:
    """Return random float32 weights by their Hugging Face names."""
    rng, decoder = np.random.default_rng(seed), families.read_config(config)
    gains = {f"{name}.weight" for name in decoder.norm_names()}
    tensors = {}
    for name, shape in decoder.tensor_shapes().items():
        values = rng.standard_normal(shape) * STD
        if name in gains:
            values = 1 - decoder.norm.offset + values / 2
        tensors[name] = values.astype(np.float32)
    return tensors


def write_checkpoint(
    folder: Path, config: dict[str, object], tensors: dict[str, np.ndarray], dtype: str = "F32"
) -> Path:
    """Write config.json and model.safetensors, linears as Hugging Face stores them; return `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    turned = families.read_config(config).transposed()
    tensors = {name: value.T if name in turned else value for name, value in tensors.items()}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    entries = [(name, dtype, from_float32(value, dtype)) for name, value in sorted(tensors.items())]
    write_tensors(folder / "model.safetensors", entries, {"format": "pt"})
    return folder


def save_tokenizer(folder: Path, vocabulary: int) -> None:
    """Write a byte-level BPE tokenizer with exactly `vocabulary` tokens, at least 259."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [f"{a}{b}" for a in "etaoinshr" for b in "etaoinshr"][: max(vocabulary - 259, 0)]
    words = [*SPECIAL, *alphabet, *pairs]
    words += [f"<extra_{index}>" for index in range(vocabulary - len(words))]
    vocab = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab, [(pair[0], pair[1]) for pair in pairs]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": SPECIAL[0],
        "bos_token": SPECIAL[1],
        "eos_token": SPECIAL[2],
        "model_max_length": 256,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True))


def save_tiny(folder: Path, *, dtype: str = "F32", seed: int = 0, **overrides: object) -> Path:
    """Write a random llama checkpoint with its tokenizer; `overrides` replace config keys."""
    config = tiny_config(**overrides)
    write_checkpoint(folder, config, tiny_tensors(config, seed), dtype)
    save_tokenizer(folder, int(str(config["vocab_size"])))
    return folder
