"""Look-up instructions that no processor at hand has, put together from those that it has.

One kernel text serves every vector instruction set (`schedules/llvm/_lookup.py`). With a stand-in for
the one instruction that differs, the texts for 64-byte and for 16-byte vectors run on AVX2.
"""

import dataclasses
from typing import Any

import kernels
import pytest
from tvm.tirx.script import builder as T

from shiftadd_tvm import backend
from shiftadd_tvm.backend import Backend
from shiftadd_tvm.schedules.llvm import _lookup, _lookup_float


def _part(vector: Any, start: int, size: int) -> Any:
    return T.Shuffle([vector], list(range(start, start + size)))


class Halves(_lookup.Primitive):
    """64 bytes at once, as AVX-512 looks them up, by AVX2."""

    def look_up(self, table: Any, index: Any) -> Any:
        halves = [
            T.call_llvm_pure_intrin(
                "uint8x32", self.instruction, _part(table, start, 32), _part(index, start, 32)
            )
            for start in (0, 32)
        ]
        return T.Shuffle(halves, list(range(64)))


def _float_halves(table: Any, word: Any, place: int) -> Any:
    """Look up 16 floats at once, as AVX-512 does, by AVX2."""
    _, avx2 = _lookup_float.LOOKUPS["avx2"]
    halves = [avx2(table, _part(word, start, 8), place) for start in (0, 8)]
    return T.Shuffle(halves, list(range(16)))


PRIMITIVES = {
    "avx512 by avx2": Halves(64, "llvm.x86.avx2.pshuf.b"),
    "neon by ssse3": dataclasses.replace(
        _lookup.PRIMITIVES["neon"], instruction="llvm.x86.ssse3.pshuf.b.128"
    ),
}
FLOAT = {"avx512 by avx2": (16, _float_halves)}


def targets() -> list[Backend]:
    """Return targets for the stand-ins, with the row blocks and lanes of what they stand for."""
    if "x86-avx2" not in kernels.PRESETS:
        return []
    avx2 = backend.load("x86-avx2")
    meant = {"avx512 by avx2": backend.load("x86-avx512"), "neon by ssse3": backend.load("arm")}
    return [
        dataclasses.replace(avx2, name=isa, isa=isa, lanes=target.lanes, rows=target.rows)
        for isa, target in meant.items()
    ]


def put_in(patch: pytest.MonkeyPatch) -> None:
    """Make the stand-ins known to the schedules."""
    for name, primitive in PRIMITIVES.items():
        patch.setitem(_lookup.PRIMITIVES, name, primitive)
    for name, looked_up in FLOAT.items():
        patch.setitem(_lookup_float.LOOKUPS, name, looked_up)
