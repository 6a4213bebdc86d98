"""The look-up primitive of each instruction set, and the intrinsic that puts it under `lut_query`.

One description, the one-hot reduction of `ops/lut.py` over one packed word of every plane and lane;
one implementation an instruction set. The name carries a version: tuning records store names only,
so an implementation that changes gets a new one.

    avx2     two 8-entry vpermd, blended by bit 3 of the index
    avx512   one 16-entry vpermd
    generic  a scalar load a lane
"""

from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T

from shiftadd_tvm.ops.lut import ENTRIES, GROUP, GROUPS

VERSION = 1


def register(isa: str, planes: int, lanes: int) -> str:
    """Register (once) the intrinsic for `planes` and `lanes` and return its name."""
    name = f"shiftadd.lut_{isa}_p{planes}_l{lanes}_v{VERSION}"
    if TensorIntrin.get(name, allow_missing=True) is None:
        implementation = {"avx2": _avx2, "avx512": _avx512, "generic": _generic}[isa]
        TensorIntrin.register(name, _description(planes, lanes), implementation(planes, lanes))
    return name


def _description(planes: int, lanes: int):
    @T.inline
    def one_hot(tables, words, sums, p, lane, group, entry):
        sums[p, lane] = sums[p, lane] + T.Select(
            T.bitwise_and(
                T.shift_right(words[p, lane], T.Cast("uint32", group * GROUP)),
                T.uint32(ENTRIES - 1),
            )
            == T.Cast("uint32", entry),
            tables[group, entry],
            T.float32(0),
        )

    @T.prim_func(s_tir=True)
    def description(
        tables: T.Buffer((GROUPS, ENTRIES), "float32", offset_factor=1),
        words: T.Buffer((planes, lanes), "uint32", offset_factor=1),
        sums: T.Buffer((planes, lanes), "float32", offset_factor=1, scope="local"),
    ):
        with T.sblock("root"):
            T.reads(sums[0:planes, 0:lanes], words[0:planes, 0:lanes], tables[0:GROUPS, 0:ENTRIES])
            T.writes(sums[0:planes, 0:lanes])
            for p, lane, group, entry in T.grid(planes, lanes, GROUPS, ENTRIES):
                with T.sblock("one_hot"):
                    vp, vl, vg, ve = T.axis.remap("SSRR", [p, lane, group, entry])
                    one_hot(tables, words, sums, vp, vl, vg, ve)

    @T.prim_func(s_tir=True)
    def single(
        tables: T.Buffer((GROUPS, ENTRIES), "float32", offset_factor=1),
        words: T.Buffer((1, lanes), "uint32", offset_factor=1),
        sums: T.Buffer((1, lanes), "float32", offset_factor=1, scope="local"),
    ):
        with T.sblock("root"):
            T.reads(sums[0, 0:lanes], words[0, 0:lanes], tables[0:GROUPS, 0:ENTRIES])
            T.writes(sums[0, 0:lanes])
            for lane, group, entry in T.grid(lanes, GROUPS, ENTRIES):
                with T.sblock("one_hot"):
                    vl, vg, ve = T.axis.remap("SRR", [lane, group, entry])
                    one_hot(tables, words, sums, 0, vl, vg, ve)

    # TVM drops loops of extent 1 from what it matches: one plane has no loop of its own
    return single if planes == 1 else description


def _implementation(planes: int, lanes: int, add_word):
    """Return the intrinsic that adds the look-ups of one word of every plane and lane."""

    @T.prim_func(s_tir=True)
    def implementation(
        tables: T.Buffer((GROUPS, ENTRIES), "float32", offset_factor=1),
        words: T.Buffer((planes, lanes), "uint32", offset_factor=1),
        sums: T.Buffer((planes, lanes), "float32", offset_factor=1, scope="local"),
    ):
        with T.sblock("root"):
            T.reads(sums[0:planes, 0:lanes], words[0:planes, 0:lanes], tables[0:GROUPS, 0:ENTRIES])
            T.writes(sums[0:planes, 0:lanes])
            add_word(tables, words, sums)

    return implementation


def _vectorized(planes: int, lanes: int, looked_up):
    # group by group, so that a table's entries are loaded once for all planes; constants only, no
    # arithmetic on loop variables: `tensorize` turns those into int64 under Relax
    @T.inline
    def add_word(tables, words, sums):
        for group in T.unroll(GROUPS):
            for p in T.unroll(planes):
                sums[p, T.Ramp(0, 1, lanes)] = sums[p, T.Ramp(0, 1, lanes)] + looked_up(
                    tables,
                    group,
                    T.shift_right(
                        words[p, T.Ramp(0, 1, lanes)],
                        T.Broadcast(T.Cast("uint32", group * GROUP), lanes),
                    ),
                )

    return _implementation(planes, lanes, add_word)


def _avx2(planes: int, lanes: int):
    def looked_up(tables, group, index):
        permute = "llvm.x86.avx2.permps"
        low = T.call_llvm_pure_intrin("float32x8", permute, tables[group, T.Ramp(0, 1, 8)], index)
        high = T.call_llvm_pure_intrin("float32x8", permute, tables[group, T.Ramp(8, 1, 8)], index)
        upper = T.bitwise_and(index, T.Broadcast(T.uint32(8), 8)) != T.Broadcast(T.uint32(0), 8)
        return T.Select(upper, high, low)

    return _vectorized(planes, lanes, looked_up)


def _avx512(planes: int, lanes: int):
    def looked_up(tables, group, index):
        permute = "llvm.x86.avx512.permvar.sf.512"
        table = tables[group, T.Ramp(0, 1, 16)]
        return T.call_llvm_pure_intrin("float32x16", permute, table, index)

    return _vectorized(planes, lanes, looked_up)


def _generic(planes: int, lanes: int):
    def nibble(word, group):
        shifted = T.shift_right(word, T.Cast("uint32", group * GROUP))
        return T.Cast("int32", T.bitwise_and(shifted, T.uint32(ENTRIES - 1)))

    @T.inline
    def add_word(tables, words, sums):
        for p, lane, group in T.grid(planes, lanes, GROUPS):
            sums[p, lane] = sums[p, lane] + tables[group, nibble(words[p, lane], group)]

    return _implementation(planes, lanes, add_word)
