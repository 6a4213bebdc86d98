"""The intrinsics under `lut_float_query`: a chunk of steps of one plane of one row block.

avx2     two 8-entry vpermps, blended by bit 3 of the index
avx512   one 16-entry vpermps
else     a scalar load a row, any target
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm.s_tir import TensorIntrin
from tvm.tirx.script import builder as T

from shiftadd_tvm.ops.planes import ENTRIES, GROUP, VIEWS
from shiftadd_tvm.schedules.llvm._lookup import Buffer, intrinsic, one_hot, prefetch, selected

VERSION = 4


@dataclass(frozen=True)
class Tile:
    """What one call of the intrinsic covers, and how."""

    isa: str
    rows: int  # L, of a row block
    blocks: int  # row blocks that share the loads of a table
    steps: int
    prefetch: int  # bytes ahead of the planes, into the first cache
    far: int  # the same into the second

    @property
    def lanes(self) -> int:
        """Words of a step of one row block."""
        return self.rows // VIEWS


def register(tile: Tile) -> str:
    """Register (once) the intrinsic of `tile`; return its name."""
    sizes = f"{tile.isa}{tile.rows}_b{tile.blocks}_s{tile.steps}_pf{tile.prefetch}x{tile.far}"
    name = f"shiftadd.lut_float_{sizes}_v{VERSION}"
    if TensorIntrin.get(name, allow_missing=True) is None:
        vectors = tile.isa in LOOKUPS
        body = _vectorized(tile, *LOOKUPS[tile.isa]) if vectors else _generic(tile)
        # sums of its own: fewer roundings at the size of the whole sum
        kernel = intrinsic(_buffers(tile), body, ((tile.blocks, VIEWS, tile.lanes), "float32"))
        TensorIntrin.register(name, _description(tile), kernel)
    return name


def _buffers(tile: Tile) -> list[Buffer]:
    return [
        ("planes", (tile.blocks, 1, tile.steps, tile.lanes), "uint32", "global"),
        ("tables", (1, tile.steps, 2, ENTRIES), "float32", "global"),
        ("sums", (1, tile.blocks, 1, VIEWS, tile.lanes), "float32", "global"),
    ]


def _description(tile: Tile):
    extents = [tile.blocks, VIEWS, tile.lanes, tile.steps, 2, ENTRIES]

    def body(planes, tables, sums):
        with one_hot(extents, "SSSRRR") as (b, v, i, step, half, entry):
            value = tables[0, step, half, entry]
            chosen = selected(planes, b, v, i, step, half, entry, value, T.float32(0))
            T.buffer_store(sums, sums[0, b, 0, v, i] + chosen, [0, b, 0, v, i])

    return intrinsic(_buffers(tile), body)


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


def _vectorized(tile: Tile, width: int, looked_up: Callable[..., Any]):
    vectors = [
        (b, v, T.Ramp(start * width, 1, width))
        for b, start, v in np.ndindex(tile.blocks, tile.lanes // width, VIEWS)
    ]

    def body(planes, tables, sums, partial):
        for b, v, vector in vectors:
            T.buffer_store(partial, T.Broadcast(T.float32(0), width), [b, v, vector])
        with T.serial(0, tile.steps) as step:
            prefetch(planes, step, tile)
            table = lambda half: lambda entries: tables[0, step, half, entries]
            for b, v, vector in vectors:
                word = planes[b, 0, step, vector]
                values = [looked_up(table(h), word, v * 8 + h * GROUP) for h in range(2)]
                total = partial[b, v, vector] + (values[0] + values[1])
                T.buffer_store(partial, total, [b, v, vector])
        for b, v, vector in vectors:
            total = sums[0, b, 0, v, vector] + partial[b, v, vector]
            T.buffer_store(sums, total, [0, b, 0, v, vector])

    return body


def _generic(tile: Tile):
    def body(planes, tables, sums, partial):
        def entry(step, half, b, v, i):
            shifted = T.shift_right(planes[b, 0, step, i], T.uint32(v * 8 + half * GROUP))
            index = T.Cast("int32", T.bitwise_and(shifted, T.uint32(ENTRIES - 1)))
            return tables[0, step, half, index]

        with T.grid(tile.blocks, tile.lanes) as (b, i):
            for v in range(VIEWS):
                T.buffer_store(partial, T.float32(0), [b, v, i])
            with T.serial(0, tile.steps) as step:
                for v in range(VIEWS):
                    value = entry(step, 0, b, v, i) + entry(step, 1, b, v, i)
                    T.buffer_store(partial, partial[b, v, i] + value, [b, v, i])
            for v in range(VIEWS):
                total = sums[0, b, 0, v, i] + partial[b, v, i]
                T.buffer_store(sums, total, [0, b, 0, v, i])

    return body
