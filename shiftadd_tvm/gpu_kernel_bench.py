"""The bench of single look-ups on a GPU: an archive that times them where the GPU is, and what it finds.

    kernels.json    shapes: of each the contenders, their arguments, and the launches of their variants

The rest is as in every archive (`cuda/archive.py`). Ours is the kernel that compiling takes; beside it
stand the same untuned, where it was tuned, and overlapping, where GPUs can; and the baselines.
"""

import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tvm.ir import IRModule
from tvm.s_tir import Schedule
from tvm.tirx import PrimFunc

from shiftadd_tvm import pipeline
from shiftadd_tvm.backend import LAUNCHES, Backend
from shiftadd_tvm.benchmark.gpu_kernels import fields
from shiftadd_tvm.cuda import contents, reading, roof, timing
from shiftadd_tvm.cuda.archive import Archive, Compiled, compiled
from shiftadd_tvm.errors import UnsupportedError
from shiftadd_tvm.ops import lutgemm, words
from shiftadd_tvm.settings import QuantizeSettings
from shiftadd_tvm.tuning import candidates
from shiftadd_tvm.tuning.emitted import emitted
from shiftadd_tvm.tuning.log import open_logs
from shiftadd_tvm.tuning.word_shapes import WordShape

PROGRAM = "kernels.pyz"
COLD = 512 << 20  # bytes of weights: more than twice the second cache of any GPU
ROOM, HALF_ROOM = 1e-3, 5e-3  # of the largest result: of sums in float32, and of float16
LANES = "shuffle16"  # a format whose planes are in the order that the baseline reads

Array = np.ndarray
Fields = dict[str, Any]
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Request:
    """What is to be measured, on one target."""

    shapes: Sequence[tuple[int, int]]  # (outputs, inputs)
    bits: int
    activations: str
    baselines: bool = False
    cold_bytes: int = COLD
    roof_bytes: int = reading.NBYTES


def look_up(request: Request, size: tuple[int, int], activations: str = "") -> WordShape:
    """Return the look-up of (outputs, inputs), of one token and as many terms as `quantize` makes."""
    settings, form = QuantizeSettings(), activations or request.activations
    terms = {"row_terms": settings.row_terms, "plane_terms": settings.plane_terms}
    shape = WordShape(size[0], 1, request.bits, 1, **terms, bias=False, activations=form)
    return replace(shape, steps=words.steps(size[1], shape.form.order))


def build(path: Path, request: Request, backend: Backend, progress: Progress) -> None:
    """Write the archive at `path`; needs no GPU."""
    with zipfile.ZipFile(path, "w") as file:
        archive, made = Archive(file, timing), list[Fields]()
        for number, size in enumerate(request.shapes):
            progress(number, len(request.shapes), f"{size[0]}x{size[1]}, building")
            own = _Shape(archive, request, backend, size)
            made.append({"shape": size, "bits": request.bits, "contenders": list(own.contenders())})
        about = {"schema": timing.SCHEMA, "arch": backend.device, "shapes": made}
        about |= {"cold_bytes": request.cold_bytes, "roof_bytes": request.roof_bytes}
        about["roof"] = archive.add("roof.cubin", roof.image(backend.device))
        archive.add(timing.SHAPES, json.dumps(about, separators=(",", ":")).encode())


class _Shape:
    """The contenders of one shape, added to an archive."""

    def __init__(
        self, archive: Archive, request: Request, backend: Backend, size: tuple[int, int]
    ) -> None:
        self._archive, self._request, self._backend, self._size = archive, request, backend, size
        self._folder = f"{size[0]}x{size[1]}"

    def contenders(self) -> Iterator[Fields]:
        shape = look_up(self._request, self._size)
        given, expected = candidates.example(shape)
        arguments = self._arguments(timing.OURS, given, candidates.PLANES, candidates.seed(shape))
        exact = {"expected": self._store("expected", expected), "kind": "f", "room": 0}
        for name, function, overlapping in self._ours(shape):
            variant = self._variant(name, compiled(function, self._backend), overlapping, {})
            yield {"name": name, **arguments, **exact, "variants": [variant]}
        if self._request.baselines:
            yield self._tables()
            yield self._half()

    def _ours(self, shape: WordShape) -> Iterator[tuple[str, PrimFunc, bool]]:
        own, logs = self._backend, open_logs(self._backend.name)
        module = IRModule({"main": shape.function(words.ROWS)})
        found, counts = pipeline.apply_schedules(module, own, logs)
        yield timing.OURS, found["main"], False
        if counts["tuned"]:
            yield "untuned", pipeline.apply_schedules(module, own)[0]["main"], False
        if own.overlaps:
            apart, _ = pipeline.apply_schedules(module, own.launching(LAUNCHES[1]), logs)
            yield LAUNCHES[1], apart["main"], True

    def _tables(self) -> Fields:
        """The 256-entry tables in shared memory of LUT-GEMM: as fast as any of its variants."""
        shape = look_up(self._request, self._size, LANES)
        given, expected = candidates.example(shape)
        given = [candidates.activation(shape), *given[candidates.PLANES :]]
        tensors = [(array.shape, str(array.dtype)) for array in given]
        compute = lambda x, planes, c, r: lutgemm.query(x, planes, c, r, shape.outputs)
        module = IRModule({"main": emitted("lutgemm", compute, tensors)})
        kernel = pipeline.schedules(self._backend.family)["lutgemm"]
        name = "lut-gemm"
        variants = []
        for rows, steps in kernel.VARIANTS:
            function = kernel.schedule(Schedule(module), self._backend, rows, steps)
            made, values = compiled(function, self._backend), {"rows": rows, "steps": steps}
            variants.append(self._variant(f"{name}{rows}{steps}", made, False, values))
        return {
            **{"name": name, **self._arguments(name, given, 1, candidates.seed(shape))},
            **{"expected": self._store(name, expected), "kind": "f", "room": ROOM},
            "variants": variants,
        }

    def _half(self) -> Fields:
        """The matrix in float16, by cuBLAS."""
        outputs, inputs = self._size
        x, seed = contents.halves("x", 2 * inputs), f"{outputs} {inputs} float16"
        size = 2 * outputs * inputs
        weights = np.frombuffer(contents.halves(seed, size), np.float16).reshape(outputs, inputs)
        y = weights.astype(np.float32) @ np.frombuffer(x, np.float16).astype(np.float32)
        stored = {"file": self._archive.add(f"{self._folder}/x.bin", x), "bytes": len(x)}
        return {
            **{"name": "cublas-fp16", "weights": 1, "weight_bytes": size},
            "arguments": [stored, {"seed": seed, "bytes": size, "halves": True}],
            **{"expected": self._store("cublas", y.astype(np.float16)), "kind": "e"},
            **{"room": HALF_ROOM, "variants": [{"values": {}, "sizes": [1, outputs, inputs]}]},
        }

    def _arguments(self, name: str, given: list[Array], place: int, seed: str) -> Fields:
        """Return the fields of a look-up's arguments; the planes, at `place`, are made up of a seed."""
        stored = [
            {"seed": seed, "bytes": array.nbytes}
            if at == place
            else {"file": self._store(f"{name}{at}", array), "bytes": array.nbytes}
            for at, array in enumerate(given)
        ]
        # the planes and their terms
        nbytes = sum(array.nbytes for array in given[place : place + 3])
        return {"arguments": stored, "weights": place, "weight_bytes": nbytes}

    def _store(self, name: str, array: Array) -> str:
        return self._archive.add(f"{self._folder}/{name}.bin", array.tobytes())

    def _variant(self, name: str, made: Compiled, overlapping: bool, values: Fields) -> Fields:
        image = self._archive.add(f"{self._folder}/{name}.cubin", made.cubin)
        launches = {"launches": made.fields(), "overlapping": overlapping}
        return {"values": values, "image": image, **launches}


def measure(request: Request, backend: Backend, progress: Progress) -> Fields:
    """Return the fields of `bench --kernel --json`, measured on the GPU of this machine.

    Raises `UnsupportedError` where it lacks one for the target.
    """
    if missing := backend.missing_features():
        raise UnsupportedError(
            f"Target {backend.name} does not run here, its kernels cannot be timed: this machine lacks "
            f"{', '.join(missing)}. With -o DIR they are built here, to be timed on another machine."
        )
    with tempfile.TemporaryDirectory(prefix="shiftadd-bench-") as folder:
        program, output = Path(folder) / PROGRAM, Path(folder) / timing.TIMES
        build(program, request, backend, progress)
        progress(0, 1, "measuring")
        command = [sys.executable, str(program)]
        child = subprocess.run(command, capture_output=True, text=True, check=False)
        if child.returncode:
            said = child.stderr.strip().splitlines() or [f"status {child.returncode}"]
            raise UnsupportedError(f"Kernels cannot be timed here: {said[-1]}.")
        found = json.loads(output.read_text("utf-8"))
    return {"target": backend.name, "bits": request.bits, **fields(found, request.activations)}
