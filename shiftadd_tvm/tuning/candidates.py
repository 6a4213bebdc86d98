"""Candidates for a GPU in one file, which measures itself where the GPU is (`cuda/measuring.py`).

    candidates.json     tasks: their arguments, and each candidate's knobs and launches
    <task>/<n>.cubin    machine code
    <task>/*.bin        what the reference was given and what it gives; planes are made up of a seed

The rest is as in every archive (`cuda/archive.py`).
"""

import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from shiftadd_tvm import pipeline
from shiftadd_tvm.backend import Backend
from shiftadd_tvm.cuda import contents, measuring
from shiftadd_tvm.cuda.archive import Archive, compiled
from shiftadd_tvm.errors import GateError, UsageError
from shiftadd_tvm.ops import lut_bits, lut_bytes, words
from shiftadd_tvm.ops import planes as order
from shiftadd_tvm.powers import EXPONENT_BIAS
from shiftadd_tvm.tuning import log as logs
from shiftadd_tvm.tuning import space
from shiftadd_tvm.tuning.measure import BUILD_TIMEOUT, COLD, Fork, TrialError
from shiftadd_tvm.tuning.tasks import Task
from shiftadd_tvm.tuning.word_shapes import WordShape

LIMIT = 64 << 20  # bytes of the file
ROWS = 512  # of a matrix that the reference computes at once
PLANES = 2  # which argument has the planes

Array = np.ndarray
Fields = dict[str, Any]
Progress = Callable[[int, int, str], None]


def build(
    path: Path,
    tasks: list[Task],
    backend: Backend,
    trials: int,
    scratch: Path,
    workers: int,
    progress: Progress,
) -> list[Fields]:
    """Write up to `trials` candidates of each task into the file at `path`; return what is in it.

    Raises `GateError` where an untuned kernel cannot be compiled, `UsageError` beyond `LIMIT`.
    """
    with zipfile.ZipFile(path, "w") as file:
        archive, made = Archive(file, measuring), list[Fields]()
        for number, task in enumerate(tasks):
            progress(number, len(tasks), task.name)
            made.append(_task(archive, task, backend, trials, scratch, workers))
        about = {"schema": measuring.SCHEMA, "preset": backend.name, "arch": backend.device}
        about |= {"versions": logs.versions(), "tasks": made}
        archive.add(measuring.TASKS, json.dumps(about, separators=(",", ":")).encode())
    progress(len(tasks), len(tasks), "written")
    if path.stat().st_size >= LIMIT:
        raise UsageError(
            f"The candidates take {path.stat().st_size >> 20} MB, expected less than {LIMIT >> 20}; "
            "name one model with --synthetic, or give fewer --trials."
        )
    return made


def _task(
    archive: Archive, task: Task, backend: Backend, trials: int, scratch: Path, workers: int
) -> Fields:
    assert isinstance(task.shape, WordShape)
    given, expected = example(task.shape)
    stored = lambda name, data: archive.add(f"{task.name}/{name}.bin", data.tobytes())
    arguments: list[Fields] = [
        {"seed": seed(task.shape), "bytes": array.nbytes}
        if place == PLANES
        else {"file": stored(place, array), "bytes": array.nbytes}
        for place, array in enumerate(given)
    ]
    return {
        "name": task.name,
        "shape": asdict(task.shape),
        "arguments": arguments,
        "weights": PLANES,
        "cold": min(task.model_bytes, COLD),
        "expected": stored("expected", expected),
        "candidates": list(_candidates(archive, task, backend, trials, scratch, workers)),
    }


def _candidates(
    archive: Archive, task: Task, backend: Backend, trials: int, scratch: Path, workers: int
) -> Iterator[Fields]:
    """Compile the points of a task's space, those near the untuned one first, in forks."""
    module = pipeline.schedules(backend.family)[task.op]
    mod = space.workload(task.function)
    points, seen = list(space.points(module))[:trials], set[bytes]()

    def work(number: int, values: dict[str, int]) -> Callable[[], Fields]:
        def compile_() -> Fields:
            candidate = space.candidate(mod, module, backend, values).mod
            kernel = compiled(space.realized(candidate, module, backend)["main"], backend)
            (scratch / f"{number}.cubin").write_bytes(kernel.cubin)
            return {"launches": kernel.fields()}

        return compile_

    for start in range(0, len(points), workers):
        some = list(enumerate(points))[start : start + workers]
        forks = [Fork(work(*point), BUILD_TIMEOUT) for point in some]
        for (number, values), fork in zip(some, forks, strict=True):
            try:
                fields = fork.result()
            except TrialError as error:
                if number:  # another one costs a trial; the first is the untuned kernel
                    continue
                raise GateError(f"The untuned kernel of {task.name} {error}; please report it.") from None
            image = (scratch / f"{number}.cubin").read_bytes()
            if image in seen:  # knobs that change nothing at this size
                continue
            seen.add(image)
            name = archive.add(f"{task.name}/{number}.cubin", image)
            yield {"values": values, "image": name, **fields}


def seed(shape: WordShape) -> str:
    """Return what the planes of a shape are made up of."""
    return f"{shape.outputs} {shape.inputs} {shape.bits} {shape.form.order}"


def activation(shape: WordShape) -> Array:
    """Return the activation (M, K) float32 of an example."""
    return np.random.default_rng(0).standard_normal((shape.tokens, shape.inputs)).astype(np.float32)


def example(shape: WordShape) -> tuple[list[Array], Array]:
    """Return the arguments of a query but its output, and what the reference gives for them."""
    rng = np.random.default_rng(1)
    form, count = shape.form, shape.bits
    terms = lambda *size: rng.integers(EXPONENT_BIAS - 3, EXPONENT_BIAS + 1, size, np.uint8)
    values = activation(shape)
    plane_terms, row_terms = terms(count, shape.plane_terms), terms(shape.outputs, shape.row_terms)
    bias = [rng.standard_normal(shape.outputs).astype(np.float32)] if shape.bias else []
    built = lut_bytes.OPERATORS[shape.read][2](values, form)
    size = words.shape(count, shape.outputs, shape.inputs, form.order)
    made_up = contents.drawn(seed(shape), int(np.prod(size)) * 4)
    planes = np.frombuffer(made_up, "<u4").reshape(size)
    canonical = _canonical(planes, shape)
    parts = [
        lut_bits.reference_query(
            *(values, canonical[:, part], plane_terms, row_terms[part], form),
            *(b[part] for b in bias),
        )
        for part in (slice(at, at + ROWS) for at in range(0, shape.outputs, ROWS))
    ]
    levels = np.repeat(plane_terms[None], size[0], axis=0)
    given = [*built, planes, levels, order.pack_row_terms(row_terms, words.ROWS), *bias]
    return given, np.concatenate(parts, axis=1)


def _canonical(planes: Array, shape: WordShape) -> Array:
    """Return packed planes as uint8 (P, N, K / 8): packing is a permutation, of words."""
    whole = (shape.bits, planes.shape[0] * words.ROWS, shape.inputs // words.BITS)
    places = np.arange(np.prod(whole), dtype="<u4").view(np.uint8).reshape(*whole[:2], whole[2] * 4)
    found = np.empty(planes.size, "<u4")
    found[words.pack(places, shape.form.order).reshape(-1)] = planes.reshape(-1)
    return found.view(np.uint8).reshape(places.shape)[:, : shape.outputs]
