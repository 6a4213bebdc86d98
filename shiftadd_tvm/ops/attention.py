"""The paged key/value cache, as plain tensors; `ops/attend.py` is the attention over it.

    keys     float32 (layers, pages, kv_heads, D, PAGE)   a page's positions side by side
    values   float32 (layers, pages, kv_heads, PAGE, D)
    table    int32 (sequences, width)   page of each run of PAGE positions of a sequence
    length   int32 (sequences,)         positions in the cache before this call

`sequence` calls append n tokens to one sequence (prefill); otherwise token i belongs to sequence i
(decode). Written as TIR: which page is written depends on data, which a tensor expression cannot say.
"""

import numpy as np
from tvm import tirx
from tvm.script import tirx as T

from shiftadd_tvm.ops import OP
from shiftadd_tvm.ops.heads import Layout
from shiftadd_tvm.ops.shift import Array

PAGE = 16  # positions a page holds


def _int64(name: str):
    return tirx.Var(name, "int64")


def positions(sequence: bool):
    """Return the TIR function length (s,) -> positions (n,) int32 of this call's tokens."""
    one = 1 if sequence else 0
    s, n = _int64("s"), _int64("n")

    @T.prim_func(s_tir=True, private=True)
    def positions(length: T.Buffer((s,), "int32"), out: T.Buffer((n,), "int32")):
        T.func_attr({"tirx.noalias": True, OP: "positions"})
        for i in T.serial(n):
            with T.sblock("positions"):
                v = T.axis.spatial(n, i)
                out[v] = length[v * (1 - one)] + T.Cast("int32", v * one)

    return positions


def append(layout: Layout, sequence: bool, columns: int = 0):
    """Return the TIR function (keys, values, new keys, new values, table, length, layer) that writes
    this call's keys (n, kv_heads D) and values into the cache, in place; the values lie as `layout`
    says in `columns` columns (0: no more than theirs)."""
    kv_heads, head_dim = layout.heads, layout.size
    columns = columns or kv_heads * head_dim
    one = 1 if sequence else 0
    layers, pages, s, width, n = (_int64(name) for name in ("layers", "pages", "s", "width", "n"))

    @T.prim_func(s_tir=True, private=True)
    def append(
        keys: T.Buffer((layers, pages, kv_heads, head_dim, PAGE), "float32"),
        values: T.Buffer((layers, pages, kv_heads, PAGE, head_dim), "float32"),
        new_keys: T.Buffer((n, kv_heads * head_dim), "float32"),
        new_values: T.Buffer((n, columns), "float32"),
        table: T.Buffer((s, width), "int32"),
        length: T.Buffer((s,), "int32"),
        layer: T.int64,
    ):
        T.func_attr({"tirx.noalias": True, OP: "append"})
        for i, h, d in T.grid(n, kv_heads, head_dim):
            with T.sblock("append"):
                vi, vh, vd = T.axis.remap("SSS", [i, h, d])
                T.reads()  # which page is written depends on data: the block is opaque
                T.writes()
                position = T.bind(length[vi * (1 - one)] + T.Cast("int32", vi * one))
                page = T.bind(table[vi * (1 - one), position // PAGE])
                keys[layer, page, vh, vd, position % PAGE] = new_keys[vi, vh * head_dim + vd]
                values[layer, page, vh, position % PAGE, vd] = new_values[vi, layout.column(vh, vd)]

    return append


def rows_of(table: Array, length: Array, n: int, sequence: bool) -> list[tuple[Array, int]]:
    """Return (page row, position) of each of the call's n tokens."""
    if sequence:
        return [(table[0], int(length[0]) + i) for i in range(n)]
    return [(table[i], int(length[i])) for i in range(n)]


def reference_positions(length: Array, n: int, sequence: bool) -> Array:
    """Return the positions (n,) int32 of this call's tokens."""
    return np.array([p for _, p in rows_of(np.zeros((n, 1)), length, n, sequence)], np.int32)


def reference_append(
    keys: Array,
    values: Array,
    new_keys: Array,
    new_values: Array,
    table: Array,
    length: Array,
    layer: int,
    sequence: bool,
) -> None:
    """Write the call's keys and values into the cache, in place."""
    kv_heads, head_dim = keys.shape[2:4]
    for i, (row, position) in enumerate(rows_of(table, length, len(new_keys), sequence)):
        page, slot = row[position // PAGE], position % PAGE
        keys[layer, page, :, :, slot] = new_keys[i].reshape(kv_heads, head_dim)
        values[layer, page, :, slot] = new_values[i].reshape(kv_heads, head_dim)


REFERENCES = {
    "positions": reference_positions,
    "append": reference_append,
}
