"""The stages of a calibrated quantization, in order; each goes on where an interrupted run stopped.

    measure    one walk over the original model: H of every input group, its last states
    allocate   the bits of every linear, when they differ: errors at each width, losses, program
    code       `quantizers/shiftadd.py`, group by group, under the H that were measured
    tune       scales and norms of the whole model (`distillation.py`)

`quantization.py` calls them; what they share lies in a `StatisticsStore`.
"""

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from shiftadd_tvm import (
    allocation,
    calibration,
    calibration_text,
    distillation,
    heap,
    latencies,
    paper_criterion,
)
from shiftadd_tvm.bcq import MAX_BITS
from shiftadd_tvm.calibration_text import CalibrationData
from shiftadd_tvm.checkpoint_base import Checkpoint
from shiftadd_tvm.dequantized import dequantize
from shiftadd_tvm.effort import SENSITIVITY_BLOCKS
from shiftadd_tvm.errors import BadFileError
from shiftadd_tvm.families import Decoder
from shiftadd_tvm.hidden_states import InMemory, OnDisk, Place
from shiftadd_tvm.packed import PackedModel
from shiftadd_tvm.quantizers import shiftadd
from shiftadd_tvm.reference import one_thread
from shiftadd_tvm.sensitivity import OutputErrors, Sensitivity
from shiftadd_tvm.settings import QuantizeSettings
from shiftadd_tvm.statistics_store import StatisticsStore
from shiftadd_tvm.tensorfile import TensorFile

Array = np.ndarray
Report = Callable[[str, float, str], None]  # stage, its share that is done, what is being done

T = TypeVar("T")
R = TypeVar("R")

# by which one bit more multiplies the expected loss: between 2, 3 and 4 bits of SmolLM2-135M's linears
# its logarithm is -1.20, with a deviation of 0.06 from linear to linear
LOSS_PER_BIT = 0.30
METHOD = 4  # to be raised when what an interrupted run left comes to mean something else
WORKERS = 2  # groups that are coded together: each holds its matrices and the factor of its H
_WINDOWS, _STATES, _DATA = "windows.safetensors", "states.safetensors", "data.json"
_ENERGIES, _COSTS = "energies.json", "costs.json"
_TUNING, _TUNED = "tuning.safetensors", "tuned.safetensors"


class Calibrated:
    """One calibrated run over a checkpoint."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        decoder: Decoder,
        settings: QuantizeSettings,
        store: StatisticsStore,
        report: Report,
        *,
        spill: bool = False,
        device: str = "cpu",
    ) -> None:
        """`spill`: states between blocks lie on disk, in the store's folder; the model runs on
        `device`, linears are coded by the processor."""
        self._spill, self._device = spill, device
        self._checkpoint, self._decoder, self._settings = checkpoint, decoder, settings
        self._store, self._report = store, report
        self._blocks = decoder.blocks()
        shapes = {
            f"{block}.{name}": shape
            for block in self._blocks
            for name, shape in decoder.linear_shapes().items()
        }
        self._sizes = {name: math.prod(shape) for name, shape in shapes.items()}
        self._shapes = {name: latencies.shape_name(shape) for name, shape in shapes.items()}

    def measure(self) -> dict[str, object]:
        """Measure what is not measured yet; return the description of the data."""
        if not self._store.has(_WINDOWS):
            self._report("measure", 0.0, "calibration text")
            data = self._make_data()
            self._store.put_json(_DATA, data.description)
            self._store.put_tensors(_WINDOWS, {"ids": data.windows.astype(np.int32)})
        if not self._store.has(_STATES):
            self._walk()
        untouched = self.untouched()
        return self._store.json(_DATA) | ({"untouched": untouched} if untouched else {})

    def untouched(self) -> list[str]:
        """Return the linears of experts that no calibration token went through."""
        touched: set[str] = set()
        for block in self._blocks:
            touched.update(TensorFile(self._store.path(self._file(block))).names())
        groups = self._decoder.input_groups()
        return [name for group in groups if group[0] not in touched for name in group]

    def _make_data(self) -> CalibrationData:
        settings, own = self._settings, self._settings.own_tokens
        write = lambda: calibration_text.written_by(
            self._checkpoint, own, settings.seed, self._device
        )
        if settings.calibration_text is None:
            return write()
        text = calibration_text.read_text(Path(settings.calibration_text))
        wanted = settings.tokens - own
        given = calibration_text.from_text(self._checkpoint, text, wanted, settings.seed)
        return calibration_text.mixed(given, write(), settings.seed) if own else given

    @contextmanager
    def _place(self) -> Iterator[Place]:
        """Yield where states between blocks lie."""
        if not self._spill:
            yield InMemory()
            return
        with tempfile.TemporaryDirectory(dir=self._store.path("")) as folder:
            yield OnDisk(Path(folder))

    def _walk(self) -> None:
        with self._place() as place:
            how = (self._windows(), place, self._device)
            self._walk_through(calibration.Calibration(self._checkpoint, *how))

    def _walk_through(self, walk: calibration.Calibration) -> None:
        for index, block in enumerate(self._blocks):
            heap.give_back()
            self._report("measure", index / len(self._blocks), f"calibration: {block}")
            if self._store.has(self._file(block)):
                walk.pass_through(block)
                continue
            moments = walk.run(block)
            self._require_finite(block, moments)
            arrays = {leader: moment.numpy() for leader, moment in moments.items()}
            self._store.put_tensors(self._file(block), arrays)
        self._store.put_tensors(_STATES, {"states": walk.finish().numpy()})

    def _require_finite(self, block: str, moments: dict[str, Tensor]) -> None:
        if not all(moment.isfinite().all() for moment in moments.values()):
            raise BadFileError(
                f"{self._checkpoint.path}: {block} computes NaN or Inf on the calibration text, "
                "expected finite numbers; get its weights again."
            )

    def _windows(self) -> Array:
        return self._store.tensor(_WINDOWS, "ids").astype(np.int64)

    def _file(self, block: str) -> str:
        return f"block-{self._blocks.index(block):05d}.safetensors"

    def hessian(self, group: tuple[str, ...]) -> Tensor:
        """Return H of the activation that the linears of `group` read; 1 where nobody has seen it,
        so that every weight counts alike."""
        block = next(b for b in self._blocks if group[0].startswith(f"{b}."))
        if group[0] in TensorFile(self._store.path(self._file(block))).names():
            return torch.from_numpy(self._store.tensor(self._file(block), group[0]))
        path = group[0].removeprefix(f"{block}.")
        return torch.eye(self._decoder.projections()[path].inputs)

    def energies(self) -> dict[str, float]:
        """Return the loss that each linear brings for one of output error, as far as it is measured."""
        return {name: float(str(value)) for name, value in self._store.json(_ENERGIES).items()}

    def allocate(self) -> dict[str, int]:
        """Return the bits of every linear whose average is at most what was asked for."""
        measured = self._settings.measures_losses
        costs = self.costs_of(self._blocks) if measured else self._by_the_paper()
        if self._settings.latency is not None:
            times = {name: self._settings.latencies[shape] for name, shape in self._shapes.items()}
            return allocation.allocate_time(costs, times, self._settings.latency)
        budget = self._settings.bits * sum(self._sizes.values())
        return allocation.allocate(costs, self._sizes, budget)

    def _by_the_paper(self) -> dict[str, dict[int, float]]:
        """Return the expected loss of every linear by its bits, as the paper's criterion has it."""
        groups = self._decoder.input_groups()

        def scores(group: tuple[str, ...]) -> list[tuple[str, float]]:
            hessian, read = self.hessian(group), self._checkpoint.read
            weights = ((name, torch.from_numpy(read(f"{name}.weight"))) for name in group)
            return [(name, paper_criterion.score(w.float(), hessian)) for name, w in weights]

        found: dict[str, dict[int, float]] = {}
        for number, scored in enumerate(self.each(scores, groups)):
            self._report("allocate", number / len(groups), "the paper's criterion")
            for name, score in scored:
                found[name] = {b: score * LOSS_PER_BIT**b for b in widths(self._settings.bits)}
        self._store.put_json(_COSTS, found)
        return self.known_costs()

    def costs_of(self, blocks: Sequence[str]) -> dict[str, dict[int, float]]:
        """Measure the linears of `blocks`; return the loss of every linear by its bits, as far as it is
        known."""
        known = self._store.json(_COSTS)
        first = lambda block: next(name for name in self._sizes if name.startswith(f"{block}."))
        missing = [block for block in blocks if first(block) not in known]
        walk = self._sensitivity() if missing else None
        for run in _runs([self._blocks.index(block) for block in missing]):
            assert walk is not None
            self._measure_losses(walk, run)
        return self.known_costs()

    def _sensitivity(self) -> Sensitivity:
        """Return the original on the few tokens by which linears compare: windows from all over the
        text, and whole ones, since short ones do not show what tokens far back bring."""
        tokens, windows = self._settings.amounts.sensitivity_tokens, self._windows()
        rows = min(len(windows), max(1, tokens // windows.shape[1]))
        spread = np.linspace(0, len(windows) - 1, rows).round().astype(int)
        return Sensitivity(self._checkpoint, windows[spread, :tokens], self._device)

    def _measure_losses(self, walk: Sensitivity, run: Sequence[int]) -> None:
        """Measure the linears of the blocks of these indices, and keep what was found."""
        errors: dict[str, OutputErrors] = {}
        left = iter(range(len(self._blocks) - run[0]))

        def coded(block: str) -> dict[str, Tensor]:
            weights = {}
            for found in self.each(self._code_alone, self._decoder.groups_of(block)):
                for linear, dense, known in found:
                    weights[linear], errors[linear] = dense, known
            return weights

        def report(block: str) -> None:
            walked = (next(left) + 1) / (len(self._blocks) - run[0])
            share = (run[0] + walked * len(run)) / len(self._blocks)
            self._report("allocate", share, f"sensitivity: {block}")

        losses = walk.measure([self._blocks[index] for index in run], coded, report)
        energies, costs, width = self._store.json(_ENERGIES), self._store.json(_COSTS), self._width()
        for linear, loss in losses.items():
            energies[linear] = errors[linear].loss_of_one(loss, width)
            costs[linear] = errors[linear].losses(loss, width)
        self._store.put_json(_ENERGIES, energies)
        self._store.put_json(_COSTS, costs)

    def _width(self) -> int:
        """Return the bits at which losses are measured."""
        return round(self._settings.bits)

    def known_costs(self) -> dict[str, dict[int, float]]:
        """Return the loss of every linear by its bits, as far as it has been measured."""
        found = self._store.json(_COSTS)
        return {name: {int(b): c for b, c in by_bits.items()} for name, by_bits in found.items()}  # type: ignore[attr-defined]

    def _code_alone(self, group: tuple[str, ...]) -> list[tuple[str, Tensor, OutputErrors]]:
        """Code a group at every width, its scales not refitted; return each linear's name, its weights
        where losses are measured, and its errors."""
        matrices = [self._checkpoint.read(f"{linear}.weight") for linear in group]
        hessian, measured = self.hessian(group), self._width()
        rotated = shiftadd.RotatedGroup(matrices, hessian, self._settings)
        coded = rotated.quantize([measured] * len(group), rounds=0)
        errors = {measured: [one.output_error for one in coded]}
        wanted = widths(self._settings.bits)
        if not self._settings.amounts.one_width:
            errors |= {w: rotated.output_errors([w] * len(group)) for w in wanted if w != measured}
        found = []
        for index, (linear, matrix, one) in enumerate(zip(group, matrices, coded, strict=True)):
            by_bits = {bits: rows[index] for bits, rows in errors.items()}
            for width in wanted:
                by_bits.setdefault(width, by_bits[measured] * LOSS_PER_BIT ** (width - measured))
            dense = torch.from_numpy(dequantize(one.weight))
            found.append((linear, dense, OutputErrors(by_bits, _energy(matrix, hessian))))
        return found

    def code(
        self, group: tuple[str, ...], matrices: Sequence[Array], bits: Sequence[int]
    ) -> list[shiftadd.Quantized]:
        """Return the coded linears of a group, whose weights are `matrices`."""
        importance = None
        if self._settings.measures_losses:  # then they are known
            energies = self.energies()
            known = [energies[linear] for linear in group]
            importance = known if all(known) else None
        hessian, rounds = self.hessian(group), self._settings.amounts.rounds
        return shiftadd.quantize(matrices, bits, hessian, self._settings, importance, rounds)

    @staticmethod
    def each(work: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
        """Yield the results of `work` for `items` in order, a few at a time, each by one thread:
        their many small operators gain nothing from more, and sums keep their order."""
        with one_thread(), ThreadPoolExecutor(WORKERS) as pool:
            for start in range(0, len(items), WORKERS):  # few are waited for when one fails
                yield from pool.map(work, items[start : start + WORKERS])
                heap.give_back()

    def tune(self, packed: PackedModel) -> dict[str, Array]:
        """Return the tuned scales and vectors of the coded model; see `distillation.tune`."""
        if self._store.has(_TUNED):
            return self._store.tensors(_TUNED)
        steps = self._settings.steps
        recipe = distillation.Recipe(steps, seed=self._settings.seed)
        teacher = lambda chosen: torch.from_numpy(self._store.rows(_STATES, "states", chosen))
        note = lambda step, loss: self._report(
            "tune", step / steps, f"tuning: step {step}, {loss:.3f} nats a token"
        )
        state = self._store.path(_TUNING)
        tuned = distillation.tune(packed, self._windows(), teacher, recipe, state, note, self._device)
        self._store.put_tensors(_TUNED, tuned)
        return tuned


def _runs(indices: Sequence[int]) -> list[list[int]]:
    """Cut ascending indices into runs of neighbours, each of at most `SENSITIVITY_BLOCKS`."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][-1] + 1 and len(runs[-1]) < SENSITIVITY_BLOCKS:
            runs[-1].append(index)
        else:
            runs.append([index])
    return runs


def widths(bits: float) -> list[int]:
    """Return the bits that a linear may get, one more and one less than the average included."""
    return list(range(max(1, math.floor(bits) - 1), min(MAX_BITS, math.ceil(bits) + 1) + 1))


def _energy(matrix: Array, hessian: Tensor) -> float:
    weights = torch.from_numpy(matrix)
    return float(((weights @ hessian) * weights).sum())
