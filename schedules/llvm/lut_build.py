"""lut_build on CPUs: a row becomes whole numbers, and these the entries of a step, in vectors of 16 bits.

Lanes of a step are its 2 · 16 entries, half by half. Of each half two vectors hold 4 sums: the lowest
with or without its first two inputs, and none or more of the other two. An entry adds one of each.
"""

from tvm.s_tir import Schedule
from tvm.script.ir_builder import IRBuilder
from tvm.tirx import PrimFunc
from tvm.tirx import abs as absolute
from tvm.tirx.script import builder as T

from shiftadd_tvm.backend import Backend
from shiftadd_tvm.ops import OP, lut
from shiftadd_tvm.ops.planes import ENTRIES, GROUP, STEP
from shiftadd_tvm.schedules.llvm._registers import small

OPS = ("lut_build",)
WIDTHS = {"avx512": 32, "avx2": 16}  # numbers of 16 bits in a vector; elsewhere 8
LANES = 2 * ENTRIES  # of a step


def schedule(sch: Schedule, backend: Backend) -> PrimFunc:
    """Return the kernel for the sizes of the function."""
    columns = int(sch.get(sch.get_sblock("total")).iter_vars[-1].dom.extent)
    return _Kernel(sch.mod["main"], columns, backend).function()


class _Kernel:
    """Emits the function of values (M, K), tables (M, KB, 2, digits, 16), scale (M, 1 + C)."""

    def __init__(self, function: PrimFunc, columns: int, backend: Backend) -> None:
        self.given, self.columns, self.lanes = function.params, columns, backend.lanes
        values, tables, scale = self.given
        self.rows, self.inputs = (int(size) for size in values.shape)
        self.steps, self.digits = int(tables.shape[1]), int(tables.shape[3])
        self.groups, self.form = int(scale.shape[1]) - 1, lut.BY_DIGITS[self.digits]
        self.width = WIDTHS.get(backend.isa, 8)
        self.held = self.width // STEP  # steps of a vector of inputs
        longest = max(self.steps * STEP, self.groups * columns)
        self.length = -(-longest // LANES) * LANES  # of whole numbers, zeros behind the inputs

    def function(self) -> PrimFunc:
        """Return the TIR function."""
        with IRBuilder() as builder:
            with T.prim_func(s_tir=True, private=True):
                T.func_name("lut_build")
                T.func_attr({"tirx.noalias": True, OP: "lut_build"})
                values, tables, scale = (
                    T.arg(b.name, T.buffer(tuple(map(int, b.shape)), str(b.dtype)))
                    for b in self.given
                )
                with T.sblock("root"), T.serial(0, self.rows) as m:
                    whole = T.alloc_buffer((self.length,), "int16", scope="global")
                    self._fix(values, m, whole, scale)
                    self._sum(whole, m, scale)
                    self._build(whole, m, tables)
        return builder.get()

    def _columns(self, body) -> None:
        """Emit `body(column, lane)` for all columns, as many at once as a vector has lanes."""
        whole = self.inputs // self.lanes * self.lanes
        with T.serial(0, self.inputs // self.lanes) as part:
            with T.vectorized(0, self.lanes) as lane:
                body(part * self.lanes + lane, lane)
        if whole < self.inputs:
            with T.serial(0, self.inputs - whole) as k:
                body(whole + k, k)

    def _fix(self, values, m, whole, scale) -> None:
        """Write the row's whole numbers and its exponent."""
        peaks, field = small((self.lanes,), "uint32"), small((1,), "uint32")
        T.buffer_store(peaks, T.Broadcast(T.uint32(0), self.lanes), [T.Ramp(0, 1, self.lanes)])
        self._columns(
            lambda k, lane: T.buffer_store(
                peaks, T.max(peaks[lane], lut.magnitude(values[m, k])), [lane]
            )
        )
        T.buffer_store(field, T.uint32(0), [0])
        with T.serial(0, self.lanes) as lane:
            T.buffer_store(field, T.max(field[0], peaks[lane]), [0])
        T.buffer_store(field, lut.field_of(field[0], self.form), [0])
        T.buffer_store(scale, lut.exponent_of(field[0], self.form), [m, 0])
        fixed = lambda k: lut.round_to(values[m, k], field[0], self.form)
        self._columns(lambda k, _: T.buffer_store(whole, T.Cast("int16", fixed(k)), [k]))
        with T.serial(0, self.length - self.inputs) as k:
            T.buffer_store(whole, T.int16(0), [self.inputs + k])

    def _sum(self, whole, m, scale) -> None:
        """Write the sums of the sizes of each group's whole numbers."""
        length = self.columns if self.groups > 1 else self.length
        lanes = self.lanes if length % self.lanes == 0 else 1
        sums, total = small((lanes,), "uint32"), small((1,), "uint32")
        with T.serial(0, self.groups) as c:
            with T.vectorized(0, lanes) as lane:
                T.buffer_store(sums, T.uint32(0), [lane])
            with T.serial(0, length // lanes) as part:
                with T.vectorized(0, lanes) as lane:
                    size = absolute(whole[c * length + part * lanes + lane])
                    T.buffer_store(sums, sums[lane] + T.Cast("uint32", size), [lane])
            T.buffer_store(total, T.uint32(0), [0])
            with T.serial(0, lanes) as lane:
                T.buffer_store(total, total[0] + sums[lane], [0])
            T.buffer_store(scale, total[0], [m, 1 + c])

    def _build(self, whole, m, tables) -> None:
        """Write the entries of all steps."""
        with T.serial(0, self.steps // self.held) as part:
            self._steps(whole, m, tables, part * self.held, self.held)
        if self.steps % self.held:
            first = self.steps // self.held * self.held
            self._steps(whole, m, tables, first, self.steps - first)

    def _steps(self, whole, m, tables, first, count: int) -> None:
        """Write the entries of a few steps, whose inputs are one vector."""
        every = range(self.width)
        inputs = T.bind(whole[T.Ramp(first * STEP, 1, self.width)])
        sizes = T.max(self._many(0) - inputs, self._many(0))
        for distance in (1, 2):  # of each half, in all of its lanes
            sizes = T.bind(sizes)
            sizes = sizes + T.Shuffle([sizes], [lane ^ distance for lane in every])
        one = lambda j: T.Shuffle([inputs], [lane // GROUP * GROUP + j for lane in every])
        pair = lambda j: (one(j) & self._with_bit(0)) + (one(j + 1) & self._with_bit(1))
        low, high = T.bind(sizes + pair(0)), T.bind(pair(2))
        for step in range(count):
            for start in range(0, LANES, self.width):
                places = [divmod(lane, ENTRIES) for lane in range(start, start + self.width)]
                at = [(step * 2 + half) * GROUP for half, _ in places]
                lows = [begin + entry % GROUP for begin, (_, entry) in zip(at, places, strict=True)]
                highs = [begin + entry // GROUP for begin, (_, entry) in zip(at, places, strict=True)]
                value = T.Shuffle([low], lows) + T.Shuffle([high], highs)
                self._write(T.bind(value), tables, m, first + step, start)

    def _many(self, number: int):
        return T.Broadcast(T.int16(number), self.width)

    def _with_bit(self, bit: int):
        """Return all bits in the lanes whose number has this bit."""
        lanes = T.shift_right(T.Ramp(T.int16(0), T.int16(1), self.width), self._many(bit))
        return self._many(0) - T.bitwise_and(lanes, self._many(1))

    def _write(self, value, tables, m, step, start: int) -> None:
        """Write the digits of the entries in the lanes from `start` on."""
        digits = [
            T.bitwise_and(T.shift_right(value, self._many(place)), self._many((1 << bits) - 1))
            for place, bits in self.form.digits
        ]
        half, entry = divmod(start, ENTRIES)
        if self.digits == 1 or self.width < ENTRIES:
            for digit, cut in enumerate(digits):
                part = T.Cast(f"uint8x{self.width}", cut)
                T.buffer_store(tables, part, [m, step, half, digit, T.Ramp(entry, 1, self.width)])
            return
        size = 2 * self.width  # a vector holds whole halves, which lie side by side
        both = T.bitwise_or(digits[0], T.shift_left(digits[1], self._many(8)))
        order = [
            2 * (first + entry) + digit
            for first in range(0, self.width, ENTRIES)
            for digit in range(2)
            for entry in range(ENTRIES)
        ]
        part = T.Shuffle([T.reinterpret(f"uint8x{size}", both)], order)
        T.buffer_store(tables, part, [m, step, half, 0, T.Ramp(0, 1, size)])
