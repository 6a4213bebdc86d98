"""The intrinsics under `lut_float_query`: a chunk of steps of one plane of one row block.

avx2     two 8-entry vpermps, blended by bit 3 of the index
avx512   one 16-entry vpermps
else     a scalar load a row, any target
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm.s_tir import TensorIntrin
from tvm.tirx.script import builder as T

from shiftadd_tvm.ops.planes import ENTRIES, GROUP, VIEWS
from shiftadd_tvm.schedules.llvm._lookup import Buffer, intrinsic

VERSION = 3


def register(isa: str, rows: int, steps: int) -> str:
    """Register (once) the intrinsic for `steps` steps of row blocks of `rows`; return its name."""
    name = f"shiftadd.lut_float_{isa}{rows}_s{steps}_v{VERSION}"
    if TensorIntrin.get(name, allow_missing=True) is None:
        lanes, buffers = rows // VIEWS, _buffers(rows, steps)
        body = (
            _vectorized(lanes, steps, *LOOKUPS[isa]) if isa in LOOKUPS else _generic(lanes, steps)
        )
        # sums of its own: fewer roundings at the size of the whole sum
        kernel = intrinsic(buffers, body, ((VIEWS, lanes), "float32"))
        TensorIntrin.register(name, _description(rows, steps), kernel)
    return name


def _buffers(rows: int, steps: int) -> list[Buffer]:
    lanes = rows // VIEWS
    return [
        ("planes", (1, 1, steps, lanes), "uint32", "global"),
        ("tables", (1, steps, 2, ENTRIES), "float32", "global"),
        ("sums", (1, 1, 1, VIEWS, lanes), "float32", "global"),
    ]


def _description(rows: int, steps: int):
    # TVM drops loops of extent 1 from what it matches
    several = ([steps], "R") if steps > 1 else ([], "")

    def body(planes, tables, sums):
        with T.grid(VIEWS, rows // VIEWS, *several[0], 2, ENTRIES) as loops:
            with T.sblock("one_hot"):
                v, i, *step, half, entry = T.axis.remap(f"SS{several[1]}RR", list(loops))
                step = step[0] if step else 0
                shift = T.Cast("uint32", v * 8 + half * GROUP)
                index = T.bitwise_and(T.shift_right(planes[0, 0, step, i], shift), T.uint32(15))
                value = tables[0, step, half, entry]
                chosen = T.Select(index == T.Cast("uint32", entry), value, T.float32(0))
                T.buffer_store(sums, sums[0, 0, 0, v, i] + chosen, [0, 0, 0, v, i])

    return intrinsic(_buffers(rows, steps), body)


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


def _vectorized(lanes: int, steps: int, width: int, looked_up: Callable[..., Any]):
    vectors = [
        (v, T.Ramp(start * width, 1, width)) for start, v in np.ndindex(lanes // width, VIEWS)
    ]

    def body(planes, tables, sums, partial):
        for v, vector in vectors:
            T.buffer_store(partial, T.Broadcast(T.float32(0), width), [v, vector])
        with T.serial(0, steps) as step:
            table = lambda half: lambda entries: tables[0, step, half, entries]
            for v, vector in vectors:
                word = planes[0, 0, step, vector]
                values = [looked_up(table(h), word, v * 8 + h * GROUP) for h in range(2)]
                T.buffer_store(partial, partial[v, vector] + (values[0] + values[1]), [v, vector])
        for v, vector in vectors:
            total = sums[0, 0, 0, v, vector] + partial[v, vector]
            T.buffer_store(sums, total, [0, 0, 0, v, vector])

    return body


def _generic(lanes: int, steps: int):
    def body(planes, tables, sums, partial):
        def entry(step, half, v, i):
            shifted = T.shift_right(planes[0, 0, step, i], T.uint32(v * 8 + half * GROUP))
            index = T.Cast("int32", T.bitwise_and(shifted, T.uint32(ENTRIES - 1)))
            return tables[0, step, half, index]

        with T.serial(0, lanes) as i:
            for v in range(VIEWS):
                T.buffer_store(partial, T.float32(0), [v, i])
            with T.serial(0, steps) as step:
                for v in range(VIEWS):
                    value = entry(step, 0, v, i) + entry(step, 1, v, i)
                    T.buffer_store(partial, partial[v, i] + value, [v, i])
            for v in range(VIEWS):
                T.buffer_store(sums, sums[0, 0, 0, v, i] + partial[v, i], [0, 0, 0, v, i])

    return body
