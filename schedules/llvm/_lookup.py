"""The look-up primitive of each instruction set, and the intrinsics that put it under the look-ups.

`lookup16(table, index)` reads 16 byte entries by the low 4 bits of each byte of a vector:

    avx2     vpshufb, 32 bytes at once
    avx512   vpshufb, 64 bytes
    neon     tbl, 16 bytes
    generic  a scalar load a row, any target

One description an operator, the one-hot reduction of `ops/lut.py` or `ops/lut_float.py`; one kernel
text for all vector instruction sets. Names carry a version: tuning records store names only, so an
implementation that changes gets a new one.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm.s_tir import TensorIntrin
from tvm.script.ir_builder import IRBuilder
from tvm.tirx import Var
from tvm.tirx.script import builder as T

from shiftadd_tvm.ops.planes import ENTRIES, GROUP, VIEWS

VERSION = 2


@dataclass(frozen=True)
class Primitive:
    """How one instruction set looks up bytes: vectors of `width` bytes, by an LLVM intrinsic."""

    width: int
    instruction: str
    turn: int = 1  # steps of the loop for each that is asked for: where the loop itself costs

    def look_up(self, table, index):
        """Return the entries (width,) uint8 of `table`, 16 entries repeated, by bytes below 16."""
        return T.call_llvm_pure_intrin(f"uint8x{self.width}", self.instruction, table, index)


Buffer = tuple[str, tuple[int, ...], str, str]  # name, shape, dtype, scope

PRIMITIVES = {
    "avx2": Primitive(32, "llvm.x86.avx2.pshuf.b"),
    "avx512": Primitive(64, "llvm.x86.avx512.pshuf.b.512"),
    "neon": Primitive(16, "llvm.aarch64.neon.tbl1.v16i8", turn=2),
}


NAME = re.compile(
    rf"shiftadd\.lut_(?P<isa>generic|{'|'.join(PRIMITIVES)})(?P<rows>\d+)"
    r"_m(?P<tokens>\d+)_b(?P<blocks>\d+)_s(?P<steps>\d+)_d(?P<digits>\d+(x\d+)*)"
    r"_u(?P<unroll>\d+)_pf(?P<prefetch>\d+)(x(?P<far>\d+))?_v\d+"
)


@dataclass(frozen=True)
class Tile:
    """What one call of the integer intrinsic covers, and how: all but `rows` are knobs."""

    isa: str
    rows: int  # L, of a row block
    tokens: int
    blocks: int  # row blocks that share the loads of a table
    steps: int
    digits: tuple[int, ...]  # bits of each
    unroll: int = 1  # steps
    prefetch: int = 0  # bytes ahead of the planes, into the first cache; 0: left to the hardware
    far: int = 0  # the same into the second cache

    @property
    def name(self) -> str:
        """The name under which the intrinsic is registered, and recorded by tuning."""
        sizes = f"m{self.tokens}_b{self.blocks}_s{self.steps}_d{'x'.join(map(str, self.digits))}"
        far = f"x{self.far}" if self.far else ""  # names of before there was one stay true
        knobs = f"u{self.unroll}_pf{self.prefetch}{far}"
        return f"shiftadd.lut_{self.isa}{self.rows}_{sizes}_{knobs}_v{VERSION}"

    @classmethod
    def parse(cls, name: str) -> "Tile | None":
        """Return the tile that has this `name`; None for one of another version, or no tile's."""
        if (match := NAME.fullmatch(name)) is None:
            return None
        isa, digits = match["isa"], tuple(map(int, match["digits"].split("x")))
        sizes = ("rows", "tokens", "blocks", "steps", "unroll", "prefetch", "far")
        tile = cls(isa=isa, digits=digits, **{size: int(match[size] or 0) for size in sizes})
        return tile if tile.name == name else None


def register(tile: Tile) -> str:
    """Register (once) the integer intrinsic of `tile` and return its name."""
    if TensorIntrin.get(tile.name, allow_missing=True) is None:
        kernel = _generic(tile) if tile.isa == "generic" else _vectorized(tile)
        TensorIntrin.register(tile.name, _description(tile), kernel)
    return tile.name


def restore(name: str) -> bool:
    """Register the intrinsic that a tuning record names; False if it is not known any more."""
    tile = Tile.parse(name)
    return tile is not None and register(tile) == name


def _places(digits: tuple[int, ...]) -> list[int]:
    return [sum(digits[:index]) for index in range(len(digits))]


def _buffers(tile: Tile) -> list[Buffer]:
    """Return the (name, shape, dtype, scope) of what the intrinsic reads and writes."""
    lanes, count = tile.rows // VIEWS, len(tile.digits)
    return [
        ("planes", (tile.blocks, 1, tile.steps, lanes), "uint32", "global"),
        ("tables", (tile.tokens, tile.steps, 2, count, ENTRIES), "uint8", "global"),
        ("sums", (tile.tokens, tile.blocks, 1, VIEWS, lanes), "uint32", "global"),
    ]


def _strided(name: str, shape: tuple[int, ...], dtype: str, scope: str):
    # what an intrinsic sees is a part of a larger buffer
    strides = [Var(f"{name}_stride{axis}", "int32") for axis in range(len(shape))]
    return T.buffer(shape, dtype, strides=strides, offset_factor=1, scope=scope)


def intrinsic(buffers: list[Buffer], body, locals_=None):
    """Return the PrimFunc of an intrinsic: `body(*buffers)` inside its root block.

    `locals_` is the (shape, dtype) of sums of the intrinsic's own, which `body` gets last. They belong
    to a block inside the root: `tensorize` keeps no buffers of the root itself.
    """
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("intrinsic")
            made = [
                T.arg(name, _strided(name, shape, dtype, scope))
                for name, shape, dtype, scope in buffers
            ]
            whole = [b[tuple(slice(0, size) for size in b.shape)] for b in made]
            with T.sblock("root"):
                T.reads(whole[-1], *whole[:-1])
                T.writes(whole[-1])
                if locals_ is None:
                    body(*made)
                else:
                    with T.sblock("kernel"):
                        T.reads(whole[-1], *whole[:-1])
                        T.writes(whole[-1])
                        # "global": TVM keeps small ones on the stack, so that LLVM keeps them in
                        # registers, but asks its runtime for memory for "local" ones
                        body(*made, T.sblock_alloc_buffer(*locals_, scope="global"))
    return builder.get()


@contextmanager
def one_hot(extents: Sequence[int], kinds: str) -> Iterator[list[Any]]:
    """Open the loops and the block of a description; yield where it stands on each axis. `kinds` says
    which are summed over. TVM drops loops of extent 1 from what it matches, so there are none."""
    looped = [axis for axis, extent in enumerate(extents) if extent > 1]
    with T.grid(*(extents[axis] for axis in looped)) as loops, T.sblock("one_hot"):
        bound = T.axis.remap("".join(kinds[axis] for axis in looped), list(loops))
        at: list[Any] = [0] * len(extents)
        for axis, variable in zip(looped, bound, strict=True):
            at[axis] = variable
        yield at


def selected(planes, r, v, i, step, half, entry, value, zero):
    """Return `value` where a row's nibble of `half` of a step says `entry`, else `zero`."""
    shift = T.Cast("uint32", v * 8 + half * GROUP)
    index = T.bitwise_and(T.shift_right(planes[r, 0, step, i], shift), T.uint32(ENTRIES - 1))
    return T.Select(index == T.Cast("uint32", entry), value, zero)


def _description(tile: Tile):
    extents = [tile.tokens, tile.blocks, VIEWS, tile.rows // VIEWS, tile.steps, 2, ENTRIES]

    def body(planes, tables, sums):
        with one_hot(extents, "SSSSRRR") as (m, r, v, i, step, half, entry):
            value = None
            for d, place in enumerate(_places(tile.digits)):
                digit = T.Cast("uint32", tables[m, step, half, d, entry])
                digit = T.shift_left(digit, T.uint32(place)) if place else digit
                value = digit if value is None else value + digit
            chosen = selected(planes, r, v, i, step, half, entry, value, T.uint32(0))
            T.buffer_store(sums, sums[m, r, 0, v, i] + chosen, [m, r, 0, v, i])

    return intrinsic(_buffers(tile), body)


CACHES = {"prefetch": 3, "far": 2}  # what LLVM calls the first and the second cache


def prefetch(planes, step, tile) -> None:
    """Ask for the planes that later steps of a tile read, `tile.prefetch` and `tile.far` bytes on."""
    for (name, cache), r in itertools.product(CACHES.items(), range(tile.blocks)):
        if distance := getattr(tile, name):
            ahead = T.address_of(planes[r, 0, step + distance // tile.rows, 0])
            T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", ahead, 0, cache, 1))


class _Vectors:
    """The kernel for a tile in vectors: 2 look-ups a digit and vector, added in bytes where two fit."""

    def __init__(self, tile: Tile) -> None:
        self.tile, self.primitive = tile, PRIMITIVES[tile.isa]
        self.width = self.primitive.width
        self.words, self.halves = self.width // 4, self.width // 2
        self.lanes = lambda part: T.Ramp(part * self.words, 1, self.words)
        # for each token, row block, vector and digit: sums of even bytes + 256 · odd, and of odd
        parts = tile.rows // self.width
        self.shape = (tile.tokens, tile.blocks, parts, len(tile.digits), 2)
        self.vector = T.Ramp(0, 1, self.halves)

    def body(self, planes, tables, sums, partial) -> None:
        """Emit the whole kernel."""
        for at in np.ndindex(*self.shape):
            T.buffer_store(partial, T.Broadcast(T.uint16(0), self.halves), [*at, self.vector])
        with T.serial(0, self.tile.steps // self.tile.unroll) as outer:
            for inner in range(self.tile.unroll):
                step = outer * self.tile.unroll + inner
                prefetch(planes, step, self.tile)
                for at in np.ndindex(*self.shape[:-1]):
                    self.look_up(planes, tables, partial, step, at)
        for m, r, part in np.ndindex(*self.shape[:3]):
            for v in range(VIEWS):
                at = (m, r, 0, v, self.lanes(part))
                total = sums[at] + self.view(partial, (m, r, part), v)
                T.buffer_store(sums, total, list(at))

    def look_up(self, planes, tables, partial, step, at) -> None:
        """Add the two look-ups of one vector and digit."""
        m, r, part, d = at
        index = T.reinterpret(f"uint8x{self.width}", planes[r, 0, step, self.lanes(part)])
        low = T.bitwise_and(index, T.Broadcast(T.uint8(ENTRIES - 1), self.width))
        high = T.shift_right(index, T.Broadcast(T.uint8(GROUP), self.width))
        first = self.primitive.look_up(self.table(tables, m, step, 0, d), low)
        second = self.primitive.look_up(self.table(tables, m, step, 1, d), high)
        two_fit = self.tile.digits[d] < 8
        for byte_sums in (first + second,) if two_fit else (first, second):
            value = T.reinterpret(f"uint16x{self.halves}", byte_sums)
            odd = T.shift_right(value, T.Broadcast(T.uint16(8), self.halves))
            for index, added in enumerate((value, odd)):
                place = (*at, index, self.vector)
                T.buffer_store(partial, partial[place] + added, list(place))

    def table(self, tables, m, step, half, d):
        """Return the entries of one digit, once for each 16 bytes of a vector."""
        entries, copies = tables[m, step, half, d, T.Ramp(0, 1, ENTRIES)], self.width // ENTRIES
        return T.Shuffle([entries] * copies, list(range(self.width))) if copies > 1 else entries

    def view(self, partial, at, v):
        """Return the uint32 sums of the rows of byte `v` of every 32-bit lane."""
        total = None
        for d, place in enumerate(_places(self.tile.digits)):
            every, odd = (partial[(*at, d, index, self.vector)] for index in range(2))
            even = every - T.shift_left(odd, T.Broadcast(T.uint16(8), self.halves))
            pair = T.reinterpret(f"uint32x{self.words}", odd if v % 2 else even)
            mask, sixteen = (T.Broadcast(T.uint32(n), self.words) for n in (0xFFFF, 16))
            value = T.shift_right(pair, sixteen) if v > 1 else T.bitwise_and(pair, mask)
            value = T.shift_left(value, T.Broadcast(T.uint32(place), self.words))
            total = value if total is None else total + value
        return total


def _vectorized(tile: Tile):
    kernel = _Vectors(tile)
    return intrinsic(_buffers(tile), kernel.body, ((*kernel.shape, kernel.halves), "uint16"))


def _generic(tile: Tile):
    def body(planes, tables, sums):
        lanes = tile.rows // VIEWS
        with T.grid(tile.tokens, tile.blocks, tile.steps, lanes) as (m, r, step, i):
            for v in range(VIEWS):
                total = sums[m, r, 0, v, i]
                for half in range(2):
                    shift = T.uint32(v * 8 + half * GROUP)
                    shifted = T.shift_right(planes[r, 0, step, i], shift)
                    index = T.Cast("int32", T.bitwise_and(shifted, T.uint32(ENTRIES - 1)))
                    for d, place in enumerate(_places(tile.digits)):
                        digit = T.Cast("uint32", tables[m, step, half, d, index])
                        total = total + T.shift_left(digit, T.uint32(place))
                T.buffer_store(sums, total, [m, r, 0, v, i])

    return intrinsic(_buffers(tile), body)
