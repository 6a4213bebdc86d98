"""The intrinsics under `lut_float_query`: one step (8 inputs) of one plane of one row block.

    avx2     two 8-entry vpermps, blended by bit 3 of the index
    avx512   one 16-entry vpermps
    else     a scalar load a row, any target
"""

from collections.abc import Callable

import numpy as np
from tvm.s_tir import TensorIntrin
from tvm.tirx.script import builder as T

from shiftadd_tvm.ops.planes import ENTRIES, GROUP, VIEWS
from shiftadd_tvm.schedules.llvm._lookup import intrinsic

VERSION = 2


def register(isa: str, rows: int) -> str:
    """Register (once) the intrinsic for row blocks of `rows` and return its name."""
    name = f"shiftadd.lut_float_{isa}{rows}_v{VERSION}"
    if TensorIntrin.get(name, allow_missing=True) is None:
        body = _vectorized(rows, *LOOKUPS[isa]) if isa in LOOKUPS else _generic(rows)
        TensorIntrin.register(name, _description(rows), intrinsic(_buffers(rows), body))
    return name


def _buffers(rows: int) -> list:
    lanes = rows // VIEWS
    return [
        ("planes", (1, 1, 1, lanes), "uint32", "global"),
        ("tables", (1, 1, 2, ENTRIES), "float32", "global"),
        ("sums", (1, 1, 1, VIEWS, lanes), "float32", "local"),
    ]


def _description(rows: int):
    def body(planes, tables, sums):
        with T.grid(VIEWS, rows // VIEWS, 2, ENTRIES) as loops:
            with T.sblock("one_hot"):
                v, i, half, entry = T.axis.remap("SSRR", list(loops))
                shift = T.Cast("uint32", v * 8 + half * GROUP)
                index = T.bitwise_and(T.shift_right(planes[0, 0, 0, i], shift), T.uint32(15))
                value = tables[0, 0, half, entry]
                chosen = T.Select(index == T.Cast("uint32", entry), value, T.float32(0))
                T.buffer_store(sums, sums[0, 0, 0, v, i] + chosen, [0, 0, 0, v, i])

    return intrinsic(_buffers(rows), body)


def _avx2(table, word, place: int):
    permute = "llvm.x86.avx2.permps"
    index = T.shift_right(word, T.Broadcast(T.uint32(place), 8)) if place else word
    entries = [table(T.Ramp(start, 1, 8)) for start in (0, 8)]
    low, high = (T.call_llvm_pure_intrin("float32x8", permute, e, index) for e in entries)
    sign = T.shift_left(word, T.Broadcast(T.uint32(28 - place), 8)) if place < 28 else word
    return T.call_llvm_pure_intrin(
        "float32x8", "llvm.x86.avx.blendv.ps.256", low, high, T.reinterpret("float32x8", sign)
    )


def _avx512(table, word, place: int):
    index = T.shift_right(word, T.Broadcast(T.uint32(place), 16)) if place else word
    permute = "llvm.x86.avx512.permvar.sf.512"
    return T.call_llvm_pure_intrin("float32x16", permute, table(T.Ramp(0, 1, 16)), index)


LOOKUPS = {"avx2": (8, _avx2), "avx512": (16, _avx512)}  # lanes, and how they look up


def _vectorized(rows: int, width: int, looked_up: Callable):
    def body(planes, tables, sums):
        for half, start, v in np.ndindex(2, rows // VIEWS // width, VIEWS):
            table = lambda entries, half=half: tables[0, 0, half, entries]
            lanes = T.Ramp(start * width, 1, width)
            value = looked_up(table, planes[0, 0, 0, lanes], v * 8 + half * GROUP)
            T.buffer_store(sums, sums[0, 0, 0, v, lanes] + value, [0, 0, 0, v, lanes])

    return body


def _generic(rows: int):
    def body(planes, tables, sums):
        with T.serial(0, rows // VIEWS) as i:
            for v in range(VIEWS):
                for half in range(2):
                    shift = T.uint32(v * 8 + half * GROUP)
                    shifted = T.shift_right(planes[0, 0, 0, i], shift)
                    index = T.Cast("int32", T.bitwise_and(shifted, T.uint32(ENTRIES - 1)))
                    value = tables[0, 0, half, index]
                    T.buffer_store(sums, sums[0, 0, 0, v, i] + value, [0, 0, 0, v, i])

    return body
