"""Up to how many tokens look-ups beat prefill's product: measured for a target, not guessed.

For each number of tokens that decoding is compiled for, the look-ups (tables and queries) and
`gemm_fixed` on the same weights take turns, each compiled as it would be in a library: by the log that
has just been made. Prefill widens its panels at every call, so its time hardly depends on the tokens.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm.tirx import PrimFunc

from shiftadd_tvm import pipeline
from shiftadd_tvm.backend import Backend
from shiftadd_tvm.compile_settings import BATCHES
from shiftadd_tvm.tuning import measure, tasks
from shiftadd_tvm.tuning.log import TuningLog
from shiftadd_tvm.tuning.measure import Fork
from shiftadd_tvm.tuning.space import workload
from shiftadd_tvm.tuning.tasks import Task

Array = np.ndarray

LARGEST = 4  # tasks that are measured at most, by the bytes that a step reads through them
TIMEOUT = 180  # seconds, of one task


def rows(
    found: Sequence[Task], backend: Backend, log: Path, folder: Path, end: float
) -> int | None:
    """Return how many tokens look-ups are good for: the most of `BATCHES` at which those of
    the largest tasks together take no longer than the product.

    None is measured after `end` (of `time.monotonic`): None if none was. Raises `TrialError`.
    """
    single = [task for task in found if task.shape.tokens == 1]
    measured = []
    for task in sorted(single, key=lambda task: -task.share)[:LARGEST]:
        if time.monotonic() < end:
            calls = task.share / task.shape.nbytes
            taken = times(task, backend, log, folder)
            measured.append({tokens: calls * np.array(pair) for tokens, pair in taken.items()})
    return most(measured) if measured else None


def most(measured: Sequence[Mapping[int, Array]]) -> int:
    """Return the most tokens at which the look-ups take no longer; `measured` are the seconds of
    (look-ups, product) by the number of tokens, of each task."""
    best = min(BATCHES)
    for tokens in sorted(BATCHES):
        look_ups, product = np.sum([task[tokens] for task in measured], axis=0)
        if look_ups > product:
            break
        best = tokens
    return best


def times(task: Task, backend: Backend, log: Path, folder: Path) -> dict[int, tuple[float, float]]:
    """Return the seconds of the look-ups and of the product by the number of tokens, measured in a
    fork; raises `TrialError`."""
    logs = [TuningLog(log, backend.name)]

    def run() -> list[list[float]]:
        return [_turns(task, tokens, backend, logs, folder) for tokens in BATCHES]

    found = Fork(run, TIMEOUT).result()
    return {tokens: (a, b) for tokens, (a, b) in zip(BATCHES, found, strict=True)}


def _turns(
    task: Task, tokens: int, backend: Backend, logs: list[TuningLog], folder: Path
) -> list[float]:
    shape = replace(task.bytewise, tokens=tokens)
    given = tasks.data(replace(task, shape=shape), backend.rows)
    compile_ = lambda function: _compiled(function, backend, logs, folder)
    build, query = (
        compile_(tasks.build_function(shape)),
        compile_(shape.function(backend.rows)),
    )
    fix, multiply = (
        compile_(tasks.fix_function(shape)),
        compile_(tasks.gemm_function(shape, backend.rows)),
    )
    x = np.random.default_rng(0).standard_normal((tokens, shape.inputs)).astype(np.float32)
    values = tvm.runtime.tensor(x)
    result = tvm.runtime.empty(*given.output)

    def look_up(index: int) -> None:
        tables, scale, *weights = given.sets[index]
        build(values, tables, scale)
        query(tables, scale, *weights, result)

    fixed = tvm.runtime.empty((tokens, shape.inputs), "int16")
    exponent = tvm.runtime.empty((tokens, 1), "uint32")

    def product(index: int) -> None:
        fix(values, fixed, exponent)
        multiply(fixed, exponent, *given.sets[index][2:], result)

    return measure.seconds([look_up, product], len(given.sets))


def _compiled(
    function: PrimFunc, backend: Backend, logs: list[TuningLog], folder: Path
) -> Callable[..., Any]:
    scheduled, _ = pipeline.apply_schedules(workload(function), backend, logs)
    return measure.load(measure.build(scheduled, backend.target, folder))
