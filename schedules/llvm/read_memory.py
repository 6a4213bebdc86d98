"""read_memory on CPUs: vector loads into sums that stay in registers, one run of parts a thread."""

from tvm.s_tir import Schedule, TensorIntrin
from tvm.script import tirx as T

from shiftadd_tvm.backend import Backend
from shiftadd_tvm.ops import OP
from shiftadd_tvm.ops.read_memory import SHAPES

OPS = tuple(SHAPES)
# Bytes that are prefetched ahead: it helps some processors and hinders others, whatever the distance
# (a Zen 3 reads faster unaided, and faster still from several runs at once).
AHEAD = {"read_memory": 0, "read_memory_ahead": 4096}
LINE = 16  # words in a cache line
VERSION = 1


def schedule(sch: Schedule, backend: Backend) -> None:
    """Add a block of every run to sums in registers, part by part."""
    op = str(sch.mod["main"].attrs[OP])
    sums = sch.get_sblock("sums")
    part, run, column, block = sch.get_loops(sums)
    written = sch.cache_write(sums, 0, "local")
    sch.reverse_compute_at(written, part, preserve_unit_loops=True)
    sch.reorder(block, run, column)
    sch.parallel(part)  # before the reduction is decomposed: afterwards TVM refuses
    start = sch.decompose_reduction(sums, block)
    for stage in (start, written):
        outer, vector = sch.split(sch.get_loops(stage)[-1], [None, backend.lanes])
        sch.unroll(outer)
        sch.vectorize(vector)
    sch.unroll(run)
    sch.tensorize(column, _register(op, backend.lanes))


def _register(op: str, lanes: int) -> str:
    """Register (once) the addition of one block of one run and return its name."""
    name = f"shiftadd.{op}_l{lanes}_v{VERSION}"
    if TensorIntrin.get(name, allow_missing=True) is None:
        columns = SHAPES[op][1]
        TensorIntrin.register(
            name, _description(columns), _implementation(columns, lanes, AHEAD[op] // 4)
        )
    return name


def _description(columns: int):
    @T.prim_func(s_tir=True)
    def description(
        words: T.Buffer((columns,), "uint32", offset_factor=1),
        sums: T.Buffer((columns,), "uint32", offset_factor=1, scope="local"),
    ):
        with T.sblock("root"):
            T.reads(sums[0:columns], words[0:columns])
            T.writes(sums[0:columns])
            for column in T.serial(columns):
                with T.sblock("add"):
                    v = T.axis.spatial(columns, column)
                    sums[v] = sums[v] + words[v]

    return description


def _implementation(columns: int, lanes: int, ahead: int):
    lines = columns // LINE if ahead else 0

    @T.inline
    def prefetch(words):
        for line in T.unroll(lines):  # past the end of the buffer a prefetch does nothing
            T.evaluate(
                T.call_llvm_intrin(
                    "void",
                    "llvm.prefetch",
                    T.address_of(words[line * LINE + ahead]),
                    *(T.int32(0), T.int32(3), T.int32(1)),  # to read, into every cache, data
                )
            )

    @T.prim_func(s_tir=True)
    def implementation(
        words: T.Buffer((columns,), "uint32", offset_factor=1),
        sums: T.Buffer((columns,), "uint32", offset_factor=1, scope="local"),
    ):
        with T.sblock("root"):
            T.reads(sums[0:columns], words[0:columns])
            T.writes(sums[0:columns])
            prefetch(words)
            for vector in T.unroll(columns // lanes):
                sums[T.Ramp(vector * lanes, 1, lanes)] = (
                    sums[T.Ramp(vector * lanes, 1, lanes)] + words[T.Ramp(vector * lanes, 1, lanes)]
                )

    return implementation
