"""The paged key/value cache, as plain tensors; `ops/attend.py` is the attention over it.

    keys     (layers, pages, kv_heads, D + E, PAGE)   a page's positions side by side
    values   (layers, pages, kv_heads, PAGE, D)
    table    int32 (sequences, width)   page of each run of PAGE positions of a sequence
    length   int32 (sequences,)         positions in the cache before this call

    float32  numbers as they are, E = 0
    int8     numbers below 2^7 times a power of two that a head's D numbers share; E = 2 rows behind the
             keys hold its exponents + 64, of keys and of values (`lut.NOT_FINITE`: all D are NaN)

`sequence` calls append n tokens to one sequence (prefill); otherwise token i belongs to sequence i
(decode). Written as TIR: which page is written depends on data, which a tensor expression cannot say.
"""

from collections.abc import Callable

import numpy as np
from tvm import tirx
from tvm.script import tirx as T
from tvm.tirx import Select, const, reinterpret

from shiftadd_tvm.ops import OP, lut
from shiftadd_tvm.ops.heads import Layout
from shiftadd_tvm.ops.shift import FRACTION_BITS, Array
from shiftadd_tvm.powers import EXPONENT_BIAS

PAGE = 16  # positions a page holds
EXPONENTS = {"float32": 0, "int8": 2}  # E of each format
WHOLE = lut.Format("int8", 7, ())


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


def append(layout: Layout, sequence: bool, columns: int = 0, held: str = "float32"):
    """Return the TIR function (keys, values, new keys, new values, table, length, layer) that writes
    this call's keys (n, kv_heads D) and values into the cache, in place; the values lie as `layout`
    says in `columns` columns (0: no more than theirs). `held` is a name of `EXPONENTS`."""
    columns = columns or layout.heads * layout.size
    return {"float32": _append, "int8": _append_rounded}[held](layout, int(sequence), columns)


def _append(layout: Layout, one: int, columns: int):
    kv_heads, head_dim = layout.heads, layout.size
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


def _append_rounded(layout: Layout, one: int, columns: int):
    kv_heads, head_dim = layout.heads, layout.size
    layers, pages, s, width, n = (_int64(name) for name in ("layers", "pages", "s", "width", "n"))

    @T.prim_func(s_tir=True, private=True)
    def append(
        keys: T.Buffer((layers, pages, kv_heads, head_dim + 2, PAGE), "int8"),
        values: T.Buffer((layers, pages, kv_heads, PAGE, head_dim), "int8"),
        new_keys: T.Buffer((n, kv_heads * head_dim), "float32"),
        new_values: T.Buffer((n, columns), "float32"),
        table: T.Buffer((s, width), "int32"),
        length: T.Buffer((s,), "int32"),
        layer: T.int64,
    ):
        T.func_attr({"tirx.noalias": True, OP: "append"})
        for i, h in T.grid(n, kv_heads):
            with T.sblock("append"):
                vi, vh = T.axis.remap("SS", [i, h])
                T.reads()
                T.writes()
                field = T.alloc_buffer((2,), "uint32")  # of the largest key, and value
                position = T.bind(length[vi * (1 - one)] + T.Cast("int32", vi * one))
                page = T.bind(table[vi * (1 - one), position // PAGE])
                slot = T.bind(position % PAGE)
                for part in T.unroll(2):
                    field[part] = T.uint32(0)
                for d in T.serial(head_dim):
                    field[0] = T.max(field[0], lut.magnitude(new_keys[vi, vh * head_dim + d]))
                    field[1] = T.max(field[1], lut.magnitude(new_values[vi, layout.column(vh, d)]))
                for part in T.unroll(2):
                    field[part] = lut.field_of(field[part], WHOLE)
                    keys[layer, page, vh, head_dim + part, slot] = T.Cast(
                        "int8", lut.exponent_of(field[part], WHOLE)
                    )
                for d in T.serial(head_dim):
                    keys[layer, page, vh, d, slot] = T.Cast(
                        "int8", lut.round_to(new_keys[vi, vh * head_dim + d], field[0], WHOLE)
                    )
                    values[layer, page, vh, slot, d] = T.Cast(
                        "int8", lut.round_to(new_values[vi, layout.column(vh, d)], field[1], WHOLE)
                    )

    return append


def power(code):
    """Return 2^(code - 64), float32, of an exponent in the cache, int8; NaN for `lut.NOT_FINITE`."""
    biased = code.astype("uint8").astype("uint32")
    one = 127 - EXPONENT_BIAS  # the exponent field of 2^-64
    bits = (biased + const(one, "uint32")) << const(FRACTION_BITS, "uint32")
    nan = const(lut.NAN_BITS, "uint32")
    return reinterpret("float32", Select(biased == const(lut.NOT_FINITE, "uint32"), nan, bits))


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
    kv_heads, head_dim = values.shape[2], values.shape[4]
    put: Callable[..., None] = _put_rounded if keys.dtype == np.int8 else _put
    for i, (row, position) in enumerate(rows_of(table, length, len(new_keys), sequence)):
        page, slot = row[position // PAGE], position % PAGE
        new = [array[i].reshape(kv_heads, head_dim) for array in (new_keys, new_values)]
        put(keys[layer, page, :, :, slot], values[layer, page, :, slot], *new)


def _put(keys: Array, values: Array, new_keys: Array, new_values: Array) -> None:
    keys[:], values[:] = new_keys, new_values


def _put_rounded(keys: Array, values: Array, new_keys: Array, new_values: Array) -> None:
    for part, (place, new) in enumerate(((keys, new_keys), (values, new_values))):
        whole, exponents = lut.reference_fixed(new, WHOLE)
        place[:, : new.shape[1]] = whole
        keys[:, new.shape[1] + part] = exponents.astype(np.uint8).view(np.int8)


def reference_held(keys: Array, values: Array) -> tuple[Array, Array]:
    """Return the numbers (layers, pages, kv_heads, D, PAGE) and (..., PAGE, D) that a cache holds."""
    if keys.dtype != np.int8:
        return keys, values
    numbers, codes = keys[..., :-2, :].astype(np.float32), keys[..., -2:, :].view(np.uint8)
    exponents = np.where(codes == lut.NOT_FINITE, np.nan, codes).astype(np.float32)
    powers = np.exp2(exponents - EXPONENT_BIAS)
    return numbers * powers[..., :1, :], values * powers[..., 1, :, None]


REFERENCES = {
    "positions": reference_positions,
    "append": reference_append,
}
