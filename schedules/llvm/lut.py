"""lut_query on CPUs: a chunk of a plane at a time, tables in the first cache, threads split rows."""

from tvm.s_tir import Schedule

from shiftadd_tvm.backend import Backend, Knob
from shiftadd_tvm.ops.lut import BY_DIGITS
from shiftadd_tvm.ops.planes import VIEWS
from shiftadd_tvm.schedules.llvm import _lookup

OPS = ("lut_query",)
KNOBS = {
    # row blocks that share the loads of a table; of a batch fewer, since each token has sums of its own
    "shared": Knob((1, 2, 4), 1),
    # times as many go through one chunk of tables together
    "task": Knob((1, 2, 4, 8), 1, memory=True),
    "unroll": Knob((1, 2, 4), 1),  # steps, times the instruction set's `turn`
    # bytes ahead, into the first cache and into the second; 0: left to the hardware
    "prefetch": Knob((0, 512, 768, 1024, 2048, 4096), 4096, memory=True),
    "far": Knob((0, 1536, 2048, 4096, 8192), 0, memory=True),
}
# Streams of planes side by side keep more reads under way, and so does asking the second cache first:
# together 8 % more from the memory of an Emerald Rapids.
UNTUNED = {
    "avx512": {"shared": 4, "prefetch": 768, "far": 1536},
    "avx2": {"shared": 2, "prefetch": 1024, "far": 2048},
}
restore = _lookup.restore


def schedule(
    sch: Schedule,
    backend: Backend,
    *,
    shared: int,
    task: int,
    unroll: int,
    prefetch: int,
    far: int,
) -> None:
    """Tensorize one chunk of steps of a few row blocks; their planes one after the other."""
    stages = [sch.get_sblock(name) for name in ("sums", "signed", "totals", "scaled")]
    sums, y = stages[0], sch.get_sblock("y")
    outputs = int(sch.get(y).writes[0].source.shape[1])
    tokens = int(sch.get(sums).reads[1].source.shape[0])
    shared = divisor(outputs, backend.rows, max(shared // tokens, 1))
    task = divisor(outputs, backend.rows * shared, task)
    row, column = sch.get_loops(y)
    outer, lane = sch.split(column, [None, task * shared * backend.rows])
    sch.reorder(outer, row, lane)
    for stage in reversed(stages):
        sch.compute_at(stage, outer, preserve_unit_loops=True)
    sch.parallel(outer)  # before the reduction is decomposed: afterwards TVM refuses
    m, blocks, p, v, i, chunk, step, *_ = sch.get_loops(sums)[1:]
    covered_tile = tile(sch, sums, step, backend, shared, unroll, (prefetch, far))
    several, b = sch.split(blocks, [None, shared], preserve_unit_iters=True)
    # TVM drops loops of extent 1 from what it matches, so they stay outside
    covered = [loop for loop in (m, b) if int(sch.get(loop).extent) > 1]
    single = [loop for loop in (m, b, step) if int(sch.get(loop).extent) == 1]
    # alone, a plane is read from end to end; together, a chunk of tables serves before the next one
    around = (chunk, several, p) if task > 1 else (several, p, chunk)
    sch.reorder(*around, *single, *covered, v, i)
    start = sch.decompose_reduction(sums, around[0])
    sch.tensorize([*covered, v][0], _lookup.register(covered_tile))
    for stage in (start, *stages[1:]):
        sch.vectorize(sch.get_loops(stage)[-1])
    if outputs % backend.rows == 0:
        _, vector = sch.split(lane, [None, backend.rows // VIEWS])
        sch.vectorize(vector)


def divisor(outputs: int, unit: int, wanted: int) -> int:
    """Return the largest power of two up to `wanted` that cuts the outputs into whole units."""
    while wanted > 1 and outputs % (unit * wanted):
        wanted //= 2
    return wanted


def tile(
    sch: Schedule,
    sums,
    step,
    backend: Backend,
    shared: int,
    unroll: int,
    ahead: tuple[int, int],
) -> _lookup.Tile:
    """Return what one call of the intrinsic covers: all tokens, `shared` row blocks, all of `step`;
    planes are asked for `ahead`, that many bytes for the first and for the second cache."""
    tables = sch.get(sums).reads[1].source.shape  # the planes are read first
    tokens, digits = int(tables[0]), int(tables[3])
    steps = int(sch.get(step).extent)
    turn = _lookup.PRIMITIVES[backend.isa].turn if backend.isa in _lookup.PRIMITIVES else 1
    return _lookup.Tile(
        isa=backend.isa,
        rows=backend.rows,
        tokens=tokens,
        blocks=shared,
        steps=steps,
        digits=BY_DIGITS[digits].digit_bits,
        unroll=divisor(steps, 1, unroll * turn),
        prefetch=ahead[0],
        far=ahead[1],
    )
