"""gemm_fixed on CPUs: in whole numbers where an instruction multiplies and adds pairs of 16 bits.

A thread takes a row block of L = 64 columns. For one span of inputs at a time it widens the planes into a
panel of whole numbers, pairs of inputs side by side, which stays in the first cache; every tile of rows
is multiplied with it.

c becomes whole too: w = c / 2^u, cut to below 2^12 in sum over the planes. That is exact wherever the
terms of c lie within 11 powers of two of the largest c. A product is below 2^24, so the sums of a span of
128 inputs fit 32 bits, exactly; spans are added as float32.

    avx512  vpdpwssd, 6 rows × 4 vectors
    avx2    vpmaddwd and vpaddd, 6 rows × 2 vectors

Elsewhere vectors multiply as many float32 numbers as pairs, and `gemm.py` schedules the definition.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.s_tir import Schedule
from tvm.script.ir_builder import IRBuilder
from tvm.tirx import IntImm, PrimFunc, Var
from tvm.tirx.script import builder as T

from shiftadd_tvm.backend import Backend
from shiftadd_tvm.ops import OP, lut
from shiftadd_tvm.ops import planes as order
from shiftadd_tvm.ops.gemm import ROWS
from shiftadd_tvm.ops.shift import FRACTION_BITS, SIGN_BIT, apply_terms
from shiftadd_tvm.schedules.llvm import gemm
from shiftadd_tvm.schedules.llvm._registers import small

OPS = ("gemm_fixed",)
SPAN = 16  # steps of 8 inputs whose sums fit 32 bits
LEVEL_BITS = 12  # of a sum of all |w|
PAIRS = order.STEP // 2  # of a step
COLUMNS = 64  # of a panel: a row block


@dataclass(frozen=True)
class Primitive:
    """How an instruction set adds products of pairs: `add(sums, pairs, pairs)` of `lanes` sums."""

    lanes: int
    vectors: int  # of a row of sums that are in registers
    add: Callable[..., Any]

    @property
    def parts(self) -> int:
        """How often a panel's columns are gone through."""
        return COLUMNS // (self.lanes * self.vectors)


def _vpdpwssd(sums, a, b):
    pairs = (T.reinterpret("int16x32", operand) for operand in (a, b))
    return T.call_llvm_pure_intrin("int32x16", "llvm.x86.avx512.vpdpwssd.512", sums, *pairs)


def _vpmaddwd(sums, a, b):
    pairs = (T.reinterpret("int16x16", operand) for operand in (a, b))
    return sums + T.call_llvm_pure_intrin("int32x8", "llvm.x86.avx2.pmadd.wd", *pairs)


PRIMITIVES = {"avx512": Primitive(16, 4, _vpdpwssd), "avx2": Primitive(8, 2, _vpmaddwd)}


def schedule(sch: Schedule, backend: Backend) -> PrimFunc | None:
    """Return the kernel for the sizes of the function, or schedule its definition."""
    if backend.isa in PRIMITIVES:
        return _Kernel(sch.mod["main"], PRIMITIVES[backend.isa]).function()
    gemm.schedule(sch, backend)
    return None


def _store(buffer, value, *at) -> None:
    T.buffer_store(buffer, value, list(at))


class _Kernel:
    """Emits the function of fixed (n, 8 KB), exponent, planes, plane and row terms, (bias,) y (n, N)."""

    def __init__(self, function: PrimFunc, primitive: Primitive) -> None:
        self.primitive = primitive
        self.given = function.params
        _, _, planes, terms, row_terms, *_, y = self.given
        self.blocks, self.bits, self.steps, self.words = (int(size) for size in planes.shape)
        self.plane_width, self.row_width = int(terms.shape[2]), int(row_terms.shape[0])
        self.outputs = int(y.shape[1])
        self.span = max(s for s in range(1, SPAN + 1) if self.steps % s == 0)
        count = y.shape[0]
        self.count = int(count) if isinstance(count, IntImm) else Var("n", "int64")

    def function(self) -> PrimFunc:
        """Return the TIR function."""
        with IRBuilder() as builder:
            with T.prim_func(s_tir=True, private=True):
                T.func_name("gemm_fixed")
                T.func_attr({"tirx.noalias": True, OP: "gemm_fixed"})
                made = [T.arg(b.name, self._buffer(b)) for b in self.given]
                with T.parallel(0, self.blocks) as block:
                    self._block(block, made)
        return builder.get()

    def _buffer(self, given):
        first, *rest = given.shape
        size = int(first) if isinstance(first, IntImm) else self.count
        return T.buffer((size, *(int(other) for other in rest)), str(given.dtype))

    def _block(self, block, made) -> None:
        fixed, exponent, planes, plane_terms, row_terms, *bias, y = made
        tiles = (self.count + (ROWS - 1)) // ROWS
        panel = small((self.span * PAIRS, COLUMNS), "uint32")
        sums = T.alloc_buffer((tiles * ROWS, COLUMNS), "float32", scope="global")
        levels, unit = self._levels(plane_terms, block)
        with T.serial(0, tiles * ROWS) as m:
            for v in range(COLUMNS // self.words):
                _store(sums, T.Broadcast(T.float32(0), self.words), m, self._words(v))
        with T.serial(0, self.steps // self.span) as part:
            self._widen(planes, block, part * self.span, levels, panel)
            with T.serial(0, tiles) as tile:
                with T.serial(0, self.primitive.parts) as columns:
                    self._multiply(fixed, part * self.span * PAIRS, panel, sums, tile * ROWS, columns)
        self._finish(sums, unit, exponent, row_terms, bias, y, block)

    def _words(self, v):
        return T.Ramp(v * self.words, 1, self.words)

    def _levels(self, plane_terms, block):
        """Return 2 w of each plane and behind them minus the sum of all w, modulo 2^16; and 2^u."""
        levels, unit = small((self.bits + 1,), "uint16"), small((1,), "float32")
        bits, peak = small((self.bits,), "uint32"), small((1,), "float32")
        size = lambda p: bits[p] & T.uint32(SIGN_BIT - 1)
        _store(peak, T.float32(0), 0)
        for p in range(self.bits):
            codes = [plane_terms[block, p, t] for t in range(self.plane_width)]
            _store(bits, T.reinterpret("uint32", apply_terms(T.float32(1), codes)), p)
            _store(peak, peak[0] + T.reinterpret("float32", size(p)), 0)
        fraction = T.uint32(FRACTION_BITS)
        field = T.shift_right(T.reinterpret("uint32", peak[0]), fraction)  # 0: all c are absent
        top, low = T.uint32(126 + LEVEL_BITS), T.uint32(LEVEL_BITS - 1)
        power = T.shift_left(T.max(field, low) - low, fraction)
        _store(unit, T.reinterpret("float32", power), 0)
        _store(levels, T.uint16(0), self.bits)
        for p in range(self.bits):
            moved = size(p) + T.shift_left(top, fraction) - T.shift_left(field, fraction)
            seen = T.shift_right(size(p), fraction) + top > field
            whole = T.Cast("uint16", T.reinterpret("float32", T.Select(seen, moved, T.uint32(0))))
            signed = T.Select(bits[p] >= T.uint32(SIGN_BIT), T.uint16(0) - whole, whole)
            _store(levels, levels[self.bits] - signed, self.bits)
            _store(levels, signed + signed, p)
        return levels, unit[0]

    def _widen(self, planes, block, first, levels, panel) -> None:
        """Fill the panel with the whole numbers of a span's pairs of inputs, 16 bits each."""
        halves = 2 * self.words  # a word of a plane holds 2 × 16 bits: of 2 bytes' rows each
        doubled, w = small((self.bits, 2, halves), "uint16"), small((halves,), "uint16")
        every = T.Ramp(0, 1, halves)
        many = lambda value: T.Broadcast(value, halves)
        with T.serial(0, self.span) as step:
            for p in range(self.bits):
                word = planes[block, p, first + step, T.Ramp(0, 1, self.words)]
                pair = T.reinterpret(f"uint16x{halves}", word)
                for half in range(2):
                    twice = T.Shuffle([pair], [i // 2 * 2 + half for i in range(halves)])
                    _store(doubled, twice, p, half, every)
            for v in range(order.VIEWS):
                for pair in range(PAIRS):
                    bit = v % 2 * order.STEP + 2 * pair
                    mask = T.uint32(1 << bit | 1 << (16 + bit + 1))
                    masks = T.reinterpret(f"uint16x{halves}", T.Broadcast(mask, self.words))
                    _store(w, many(levels[self.bits]), every)
                    for p in range(self.bits):
                        held = T.bitwise_and(doubled[p, v // 2, every], masks)
                        more = w[every] + many(levels[p])
                        chosen = T.Select(held != many(T.uint16(0)), more, w[every])
                        _store(w, chosen, every)
                    pairs = T.reinterpret(f"uint32x{self.words}", w[every])
                    _store(panel, pairs, step * PAIRS + pair, self._words(v))

    def _multiply(self, fixed, first, panel, sums, m, columns) -> None:
        """Add a tile of rows times the panel to its sums."""
        lanes, vectors = self.primitive.lanes, range(self.primitive.vectors)
        acc = small((ROWS, len(vectors), lanes), "int32")
        every, dtype = T.Ramp(0, 1, lanes), f"float32x{lanes}"
        at = lambda v: T.Ramp((columns * len(vectors) + v) * lanes, 1, lanes)
        for i in range(ROWS):
            for v in vectors:
                _store(acc, T.Broadcast(T.int32(0), lanes), i, v, every)
        with T.serial(0, self.span * PAIRS) as k:
            for i in range(ROWS):  # behind the last row it stands again, and is not kept
                pair = fixed[T.min(m + i, self.count - 1), T.Ramp((first + k) * 2, 1, 2)]
                pairs = T.Broadcast(T.reinterpret("uint32", pair), lanes)
                for v in vectors:
                    _store(acc, self.primitive.add(acc[i, v, every], pairs, panel[k, at(v)]), i, v, every)
        for i in range(ROWS):
            for v in vectors:
                _store(sums, sums[m + i, at(v)] + T.Cast(dtype, acc[i, v, every]), m + i, at(v))

    def _finish(self, sums, unit, exponent, row_terms, bias, y, block) -> None:
        """Write 2^e · r · 2^u · sums (+ bias)."""
        def write(m, j) -> None:
            n = block * COLUMNS + j
            value = lut.unfixed(sums[m, j] * unit, exponent[m, 0])
            value = apply_terms(value, [row_terms[t, n] for t in range(self.row_width)])
            _store(y, value + bias[0][n] if bias else value, m, n)

        whole = self.outputs // self.words
        with T.serial(0, self.count) as m:
            with T.serial(0, COLUMNS // self.words) as v:
                with T.If(block * (COLUMNS // self.words) + v < whole):
                    with T.Then():
                        with T.vectorized(0, self.words) as lane:
                            write(m, v * self.words + lane)
                    if self.outputs % self.words:
                        with T.Else():
                            with T.serial(0, self.words) as lane:
                                with T.If(block * COLUMNS + v * self.words + lane < self.outputs):
                                    with T.Then():
                                        write(m, v * self.words + lane)
