"""Tiny encoders for the tests: random weights, random inputs, and what transformers computes of them."""

import json
from pathlib import Path

import numpy as np
import torch
import transformers

from shiftadd_tvm import encoder_families
from shiftadd_tvm.encoder_model import Images
from shiftadd_tvm.tensorfile import write_tensors

STD = 0.2  # ten times the usual, so that attention looks somewhere
TOKENS = 11

Array = np.ndarray
Tensors = dict[str, Array]


def tensors(config: dict[str, object], seed: int = 0) -> Tensors:
    """Return random float32 weights by their Hugging Face names."""
    rng, encoder = np.random.default_rng(seed), encoder_families.read_config(config)
    gains = {f"{name}.weight" for name in encoder.norm_names()}
    found = {}
    for name, shape in encoder.tensor_shapes().items():
        values = rng.standard_normal(shape) * STD
        found[name] = (1 + values / 2 if name in gains else values).astype(np.float32)
    return found


def write(folder: Path, config: dict[str, object], weights: Tensors) -> Path:
    """Write config.json and model.safetensors; return `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    entries = [(name, "F32", value) for name, value in sorted(weights.items())]
    write_tensors(folder / "model.safetensors", entries, {"format": "pt"})
    return folder


def inputs(config: dict[str, object], batch: int, seed: int = 1) -> Tensors:
    """Return random images, or random texts of which each is two tokens shorter than the one before."""
    rng, embedded = np.random.default_rng(seed), encoder_families.read_config(config).embedded
    if isinstance(embedded, Images):
        shape = (batch, embedded.channels, embedded.height, embedded.width)
        return {"pixel_values": rng.standard_normal(shape).astype(np.float32)}
    shape, padding = (batch, TOKENS), embedded.padding or 0
    found = {"input_ids": rng.integers(2, embedded.vocabulary, shape)}
    found["attention_mask"] = np.ones(shape, np.int64)
    for row in range(1, batch):
        found["input_ids"][row, -2 * row :] = padding
        found["attention_mask"][row, -2 * row :] = 0
    if embedded.types:
        found["token_type_ids"] = rng.integers(0, embedded.kinds, shape)
    return found


def outputs(folder: Path, given: Tensors) -> Tensors:
    """Return what transformers computes with the checkpoint, by the names of its outputs."""
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    model, told = getattr(transformers, name).from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    # of training alone; and the pooler, which these classes have not got
    missing = {key for key in told["missing_keys"] if not key.endswith("mask_token")}
    unexpected = {key for key in told["unexpected_keys"] if ".pooler." not in key}
    assert not missing and not unexpected, told
    model.eval()
    with torch.inference_mode():
        found = model(**{key: torch.from_numpy(value) for key, value in given.items()})
    return {key: v.numpy() for key, v in found.items() if isinstance(v, torch.Tensor)}


def error(found: Tensors, expected: Tensors) -> float:
    """Return the largest error of what both have, relative to the largest value of each output."""
    both = found.keys() & expected.keys()
    assert both >= expected.keys(), (found.keys(), expected.keys())
    assert all(found[n].shape == expected[n].shape for n in both)
    return max(float(np.abs(found[n] - expected[n]).max() / np.abs(expected[n]).max()) for n in both)
