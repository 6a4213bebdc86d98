"""Planned memory: each view of it is made once, and a repeated block computes what it did."""

import numpy as np
import tvm
from kernels import PRESETS
from tvm import relax

from shiftadd_tvm import backend, pipeline
from shiftadd_tvm.layers import Builder, add
from shiftadd_tvm.shared_tensors import ALLOC

REPEATS = 6


def _doubled_often() -> tvm.ir.IRModule:
    """Return main(x (3, 8)) = 2^REPEATS x, by sums that need two buffers, and the result's own."""
    builder = Builder({})
    x = relax.Var("x", relax.TensorType((3, 8), "float32"))
    with builder.function("main", [x], parameters=False) as result:
        y = x
        for _ in range(REPEATS):
            y = add(builder, y, y)
        result(y)
    return builder.blocks.finalize()


def _made(function: relax.Function) -> list[tuple[relax.Var, str]]:
    """Return the storage and the rest of every tensor that a lowered function makes."""
    bindings = [binding for block in function.body.blocks for binding in block.bindings]
    calls = [b.value for b in bindings if isinstance(b.value, relax.Call)]
    named = [call for call in calls if isinstance(call.op, tvm.ir.Op)]
    made = [call for call in named if call.op.name in (ALLOC, "relax.vm.alloc_tensor")]
    return [(call.args[0], str(list(call.args[1:]))) for call in made]


def test_each_view_of_planned_memory_is_made_once():
    target = backend.load(PRESETS[0])
    lowered, _ = pipeline.lower(_doubled_often(), target)
    made = _made(lowered["main"])
    assert len(made) == len(set(made)) == 3


def test_shared_views_compute_the_same():
    target = backend.load(PRESETS[0])
    executable, _ = pipeline.build(_doubled_often(), target)
    x = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    found = relax.VirtualMachine(executable, tvm.cpu())["main"](tvm.runtime.tensor(x)).numpy()
    np.testing.assert_array_equal(found, x * 2**REPEATS)
