"""hadamard on CPUs: a block of the transform stays in vectors from its signs to its exponents.

Butterflies of numbers that lie in one vector are a shuffle and an addition with signs flipped; those of
vectors are an addition and a subtraction. Every sum is the one that the definition has.
"""

from tvm.s_tir import Schedule
from tvm.script.ir_builder import IRBuilder
from tvm.tirx import IntImm, PrimFunc, Var
from tvm.tirx.script import builder as T

from shiftadd_tvm.backend import Backend
from shiftadd_tvm.ops import OP
from shiftadd_tvm.ops.hadamard import BUTTERFLY, exponent
from shiftadd_tvm.ops.shift import shift
from shiftadd_tvm.schedules.llvm import rows
from shiftadd_tvm.schedules.llvm._registers import small

OPS = ("hadamard",)


def schedule(sch: Schedule, backend: Backend) -> PrimFunc | None:
    """Return the kernel for the sizes of the function; blocks below a vector are scheduled by rows."""
    stages = sch.get_child_blocks(sch.get_sblock("root"))
    count = sum(sch.get(stage).name_hint.startswith(BUTTERFLY) for stage in stages)
    if (1 << count) % backend.lanes:
        rows.schedule(sch, backend)
        return None
    return _Kernel(sch.mod["main"], 1 << count, backend.lanes).function()


class _Kernel:
    """Emits the function of values (n, K), signs, rotated (n, K)."""

    def __init__(self, function: PrimFunc, block: int, lanes: int) -> None:
        self.given, self.block, self.lanes = function.params, block, lanes
        count, self.inputs = self.given[0].shape
        self.many = not isinstance(count, IntImm)
        self.count = Var("n", "int64") if self.many else int(count)

    def function(self) -> PrimFunc:
        """Return the TIR function; rows of a symbolic number go to threads."""
        values, signs, rotated = self.given
        shape = (self.count, int(self.inputs))
        with IRBuilder() as builder:
            with T.prim_func(s_tir=True, private=True):
                T.func_name("hadamard")
                T.func_attr({"tirx.noalias": True, OP: "hadamard"})
                x = T.arg(values.name, T.buffer(shape, "float32"))
                flips = T.arg(signs.name, T.buffer((int(signs.shape[0]),), "uint8"))
                y = T.arg(rotated.name, T.buffer(shape, "float32"))
                with (T.parallel if self.many else T.serial)(0, self.count) as row:
                    with T.serial(0, int(self.inputs) // self.block) as part:
                        self._transform(x, flips, y, row, part * self.block)
        return builder.get()

    def _transform(self, x, signs, y, row, first) -> None:
        """Write the transform of the block that begins at column `first` of a row."""
        lanes, count = self.lanes, self.block // self.lanes
        held = small((count, lanes), "float32")
        every = T.Ramp(0, 1, lanes)
        for i in range(count):
            start = first + i * lanes
            bits = T.reinterpret(f"uint32x{lanes}", x[row, T.Ramp(start, 1, lanes)])
            flipped = T.bitwise_xor(bits, self._flips(signs, start))
            T.buffer_store(held, T.reinterpret(f"float32x{lanes}", flipped), [i, every])
        for step in (1 << k for k in range(self.block.bit_length() - 1)):
            for i in range(count):
                if step < lanes:
                    T.buffer_store(held, self._inside(held[i, every], step), [i, every])
                elif not i & step // lanes:
                    j = i + step // lanes
                    left, right = T.bind(held[i, every]), T.bind(held[j, every])
                    T.buffer_store(held, left + right, [i, every])
                    T.buffer_store(held, left - right, [j, every])
        for i in range(count):
            with T.vectorized(0, lanes) as lane:
                value = shift(held[i, lane], exponent(self.block))
                T.buffer_store(y, value, [row, first + i * lanes + lane])

    def _many(self, number: int):
        return T.Broadcast(T.uint32(number), self.lanes)

    def _flips(self, signs, start):
        """Return the sign bits to be flipped of the columns from `start` on: where `signs` have 0."""
        word = T.uint32(0)
        for byte in range(max(1, self.lanes // 8)):
            word = word + (T.Cast("uint32", signs[start // 8 + byte]) << T.uint32(8 * byte))
        if self.lanes < 8:
            word = T.shift_right(word, T.Cast("uint32", start % 8))
        place = T.Ramp(T.uint32(0), T.uint32(1), self.lanes)
        kept = T.shift_right(T.Broadcast(word, self.lanes), place)
        return T.shift_left(T.bitwise_xor(kept, self._many(1)), self._many(31))

    def _inside(self, value, step: int):
        """Return sums and differences at distance `step` inside a vector."""
        other = T.Shuffle([value], [lane ^ step for lane in range(self.lanes)])
        place = T.Ramp(T.uint32(0), T.uint32(1), self.lanes)
        upper = T.shift_left(T.shift_right(place, self._many(step.bit_length() - 1)), self._many(31))
        signed = T.bitwise_xor(T.reinterpret(f"uint32x{self.lanes}", value), upper)
        return other + T.reinterpret(f"float32x{self.lanes}", signed)
