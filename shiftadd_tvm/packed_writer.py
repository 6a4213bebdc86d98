"""Write a packed model piece by piece: shards as they are made, then the rest of the folder.

Every shard is written under a temporary name and renamed, so that a shard that exists is whole and
an interrupted run goes on after the last one. No file holds a path, a date or a machine's name.
"""

import os
from pathlib import Path

import numpy as np

from shiftadd_tvm.bcq import BCQWeight
from shiftadd_tvm.coded_tensors import INDEX
from shiftadd_tvm.files import canonical_json
from shiftadd_tvm.packed import CONFIG, GOLDEN, Golden
from shiftadd_tvm.tensorfile import TensorFile, write_tensors

Array = np.ndarray
Tensors = dict[str, tuple[str, Array]]  # name -> safetensors dtype, raw array

SHARED = ("column_terms", "signs")  # stored once, under the name of the group's leader
EMBEDDING_LEVELS = 127


def shard_name(index: int, count: int) -> str:
    """Return the file name of shard `index` (from 0) of `count`."""
    return f"model-{index + 1:05d}-of-{count:05d}.safetensors"


def group_tensors(linears: tuple[str, ...], weights: list[BCQWeight]) -> Tensors:
    """Return the tensors of an input group by name, what is shared only under the leader's."""
    tensors: Tensors = {}
    for linear, weight in zip(linears, weights, strict=True):
        for suffix, array in weight.arrays().items():
            if suffix not in SHARED or linear == linears[0]:
                tensors[f"{linear}.{suffix}"] = ("U8", array)
    return tensors


def round_embedding(rows: Array) -> tuple[Array, Array]:
    """Return int8 (n, hidden) and float32 scales (n,) of float32 rows, rounded half to even."""
    scale = np.abs(rows).max(axis=1) / np.float32(EMBEDDING_LEVELS)
    inverse = np.divide(1.0, scale, out=np.zeros(len(rows)), where=scale > 0)
    levels = np.rint(rows.astype(np.float64) * inverse[:, None])
    return np.clip(levels, -EMBEDDING_LEVELS, EMBEDDING_LEVELS).astype(np.int8), scale


def write_shard(path: Path, tensors: Tensors) -> None:
    """Write a safetensors file whole, its tensors in the order of their names."""
    temporary = path.with_name(path.name + ".tmp")
    entries = ((name, dtype, array) for name, (dtype, array) in sorted(tensors.items()))
    write_tensors(temporary, entries, {"format": "pt"})
    os.replace(temporary, path)


def write_index(folder: Path, shards: list[str]) -> None:
    """Write the index of the shards in `folder`."""
    weight_map, total = {}, 0
    for shard in shards:
        file = TensorFile(folder / shard)
        for name in file.names():
            weight_map[name] = shard
            total += file.nbytes(name)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_bytes(canonical_json(index))


def write_config(folder: Path, config: dict[str, object], quantization: dict[str, object]) -> None:
    """Write the checkpoint's config with its quantization_config."""
    text = canonical_json({**config, "quantization_config": quantization})
    (folder / CONFIG).write_bytes(text)


def write_golden(folder: Path, golden: Golden) -> None:
    """Write the golden prompts and logits, the file by which a packed model is whole."""
    ids, logits = golden.ids.astype("<i4"), golden.logits.astype("<f4")
    write_shard(folder / GOLDEN, {"ids": ("I32", ids), "logits": ("F32", logits)})
