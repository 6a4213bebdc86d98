"""Put tuned scales and vectors into the shards of a coded model: contract 1 in, contract 1 out."""

from pathlib import Path

import numpy as np

from shiftadd_tvm import packed_writer, powers
from shiftadd_tvm.packed_layout import Layout
from shiftadd_tvm.tensorfile import TensorFile

Array = np.ndarray

TERMS = {"row_terms": "rows", "column_terms": "columns"}


def rewrite(path: Path, tuned: dict[str, Array], layout: Layout) -> None:
    """Write the shard at `path` anew with what of it was tuned; doing it twice changes nothing.

    `tuned` maps `<linear>.rows`, `<leader>.columns` and names of vectors to float32 values.
    """
    file = TensorFile(path)
    tensors: packed_writer.Tensors = {}
    for name in file.names():
        module, _, suffix = name.rpartition(".")
        scale = f"{module}.{TERMS.get(suffix, '')}"
        if scale in tuned:
            terms = layout.terms[suffix]
            tensors[name] = ("U8", powers.round_to_terms(tuned[scale], terms))
        elif name in tuned:
            tensors[name] = ("F32", tuned[name])
        else:
            tensors[name] = (file.dtype(name), file.raw(name))
    packed_writer.write_shard(path, tensors)
