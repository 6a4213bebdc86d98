"""The verb `quantize`: a checkpoint in, a packed model out, one block at a time.

Plan, validate the checkpoint's shapes whole, then quantize and write one shard a block into a
staging folder, add what is not quantized, compute the golden logits, and publish. Finished shards
survive an interruption: a state file in the staging folder says what they belong to, and the next
run with the same source and settings goes on after them.
"""

import dataclasses
import functools
import hashlib
import importlib
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from shiftadd_tvm import (
    calibration_text,
    cpu,
    golden,
    heap,
    packed_config,
    packed_writer,
    quantization_report,
    torch_device,
    tuned_shards,
)
from shiftadd_tvm.bcq import BCQWeight
from shiftadd_tvm.calibrated import METHOD, Calibrated
from shiftadd_tvm.checkpoint import open_checkpoint
from shiftadd_tvm.checkpoint_base import Checkpoint
from shiftadd_tvm.dequantized import dequantize_rows
from shiftadd_tvm.errors import BadFileError
from shiftadd_tvm.files import refuse_existing, staged
from shiftadd_tvm.packed import GOLDEN, PackedModel
from shiftadd_tvm.packed_layout import Layout
from shiftadd_tvm.packed_writer import Tensors
from shiftadd_tvm.quantize_plan import make_layout
from shiftadd_tvm.quantize_time import stage_work
from shiftadd_tvm.resume import FinishedShards
from shiftadd_tvm.settings import QuantizeSettings
from shiftadd_tvm.stage_progress import Progress, StageProgress
from shiftadd_tvm.statistics_store import StatisticsStore
from shiftadd_tvm.tensorfile import DTYPES, from_float32

Array = np.ndarray
Quantized = tuple[BCQWeight, float | None]  # and its relative output error, where it is known

STATISTICS = "calibration"  # folder of what calibration measures, until the model is written
MAX_MAGNITUDE = 2.0**100  # beyond it a sum of squares or an exponent would overflow
_PIECE = 1 << 18  # values that are converted at a time


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """One linear: its bits and |W - What|^2 / |W|^2; the output error needs calibration data."""

    name: str
    bits: int
    weight_error: float
    output_error: float | None = None


@dataclasses.dataclass(frozen=True)
class QuantizeReport:
    """What `quantize` made, under the field names of the command line's JSON."""

    effective_bits: float
    nominal_bits: float
    linear_bytes: int
    layers: list[LayerReport]
    seconds: float
    peak_memory_bytes: int
    untouched: list[str]  # linears of experts that no token of the calibration went through

    def to_dict(self) -> dict[str, object]:
        """Return the report as JSON types."""
        return dataclasses.asdict(self)


def quantize(
    source: str | Path | Checkpoint,
    output: str | Path,
    settings: QuantizeSettings,
    *,
    resume: bool = True,
    force: bool = False,
    spill: bool = False,
    device: str = "cpu",
    progress: Progress | None = None,
) -> QuantizeReport:
    """Quantize the checkpoint `source` into the packed model `output`.

    Same source and settings, same bytes, whether calibration keeps states in memory or spills them to
    disk. An interrupted run leaves `<output>.partial`, from which the next one goes on unless `resume`
    is false. Calibration and tuning run the model on `device`, where sums may round differently.
    """
    begin = time.perf_counter()
    torch_device.check(device, settings)
    heap.hold()
    refuse_existing(Path(output), GOLDEN, force)
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source)
    layout = make_layout(checkpoint, settings)
    golden.check_config(checkpoint.config)
    tokenizer = checkpoint.tokenizer_files()
    # now, since the golden logits come last: a tokenizer of another model is found before the work
    golden.prompt_ids(tokenizer, layout.decoder.vocabulary)
    identity = _identity(checkpoint, settings)
    with staged(Path(output), GOLDEN, force=force, keep_on_failure=True) as folder:
        finished = FinishedShards(folder, identity, resume)
        run = _Run(
            checkpoint, layout, settings, folder, finished, tokenizer, progress or _silent
        )
        with torch_device.enough_memory(device):
            run.calibrate(spill=spill, device=device)
            layers = run.write_shards()
            run.tune()
        run.finish()
    seconds = time.perf_counter() - begin
    return QuantizeReport(
        effective_bits=run.layout.effective_bits(),
        nominal_bits=run.layout.nominal_bits(),
        linear_bytes=run.layout.linear_bytes(),
        layers=layers,
        seconds=seconds,
        peak_memory_bytes=cpu.peak_memory(),
        untouched=run.untouched,
    )


def _silent(done: int, total: int, what: str) -> None:
    """Report no progress."""


class _Run:
    """One run of `quantize` into its staging folder."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        layout: Layout,
        settings: QuantizeSettings,
        folder: Path,
        finished: FinishedShards,
        tokenizer: dict[str, bytes],
        progress: Progress,
    ) -> None:
        self.checkpoint, self.layout, self.settings = checkpoint, layout, settings
        self.folder, self.tokenizer = folder, tokenizer
        self.decoder = layout.decoder
        count = self.decoder.layers + 1
        self.shards = [packed_writer.shard_name(index, count) for index in range(count)]
        self.finished = finished
        self.done = 0
        self.stages = StageProgress(progress, layout.linear_weights(), stage_work(settings))
        self.calibrated: Calibrated | None = None
        self.description: dict[str, object] | None = None
        self.untouched: list[str] = []

    def calibrate(self, *, spill: bool, device: str) -> None:
        """Run the model on text and choose bits, if the method does; else nothing."""
        if not self.settings.calibrated:
            return
        for linear, shape in self.layout.linears().items():
            for rows in _pieces(shape):
                part = self.checkpoint.read_rows(f"{linear}.weight", rows.start, rows.stop)
                _check_magnitude(self.checkpoint, linear, part)
        store = StatisticsStore(self.folder / STATISTICS)
        self.calibrated = Calibrated(
            self.checkpoint,
            self.decoder,
            self.settings,
            store,
            self.stages.report,
            spill=spill,
            device=device,
        )
        self.description = self.calibrated.measure()
        self.untouched = self.calibrated.untouched()
        if self.settings.allocates:
            chosen = dataclasses.replace(self.settings, bits_per_module=self.calibrated.allocate())
            self.layout = packed_config.make_layout(self.decoder, chosen)

    def _report_coded(self, what: str) -> None:
        self.stages.report("code", self.done / self.layout.linear_weights(), what)

    def write_shards(self) -> list[LayerReport]:
        """Write every shard that is not finished; return the reports of all linears."""
        for shard, block in zip(self.shards, self.decoder.blocks(), strict=False):
            self._write_shard(shard, functools.partial(self._quantize_block, block))
        self._write_shard(self.shards[-1], self._outer_tensors)
        order = {name: index for index, name in enumerate(self.layout.linears())}
        reports = [fields for shard in self.shards for fields in self.finished.reports[shard]]
        layers = [LayerReport(**fields) for fields in reports]  # type: ignore[arg-type]
        return sorted(layers, key=lambda layer: order[layer.name])

    def _write_shard(
        self, shard: str, make: Callable[[], tuple[Tensors, list[LayerReport]]]
    ) -> None:
        if shard not in self.finished:
            tensors, reports = make()
            packed_writer.write_shard(self.folder / shard, tensors)
            self.finished.add(shard, [dataclasses.asdict(report) for report in reports])
            return
        names = [str(fields["name"]) for fields in self.finished.reports[shard]]
        self.done += sum(math.prod(self.layout.linears()[name]) for name in names)

    def _quantize_block(self, block: str) -> tuple[Tensors, list[LayerReport]]:
        tensors: Tensors = {}
        reports: list[LayerReport] = []
        groups = self.decoder.groups_of(block)
        self._report_coded(groups[0][0])
        each = self.calibrated.each if self.calibrated else map
        for group, quantized in zip(groups, each(self._quantize_group, groups), strict=True):
            tensors |= packed_writer.group_tensors(group, [weight for weight, _ in quantized])
            pairs = zip(group, quantized, strict=True)
            reports += [self._report(linear, *one) for linear, one in pairs]
            self.done += sum(math.prod(self.layout.linears()[linear]) for linear in group)
            self._report_coded(group[0])
        for name in self.layout.plain_shapes():
            if name.startswith(f"{block}."):
                tensors[name] = self._plain_tensor(name)
        return tensors, reports

    def _quantize_group(self, group: tuple[str, ...]) -> list[Quantized]:
        matrices = [self.checkpoint.read(f"{linear}.weight") for linear in group]
        for linear, matrix in zip(group, matrices, strict=True):
            _check_magnitude(self.checkpoint, linear, matrix)
        bits = [self.layout.bits[linear] for linear in group]
        if self.calibrated:
            coded = self.calibrated.code(group, matrices, bits)
            return [(one.weight, one.output_error) for one in coded]
        method = importlib.import_module(f"shiftadd_tvm.quantizers.{self.settings.method}")
        return [(one, None) for one in method.quantize(matrices, bits, self.settings)]

    def _report(self, linear: str, weight: BCQWeight, output_error: float | None) -> LayerReport:
        outputs, inputs = weight.shape
        step = max(1, _PIECE // inputs)
        error = square = 0.0
        for start in range(0, outputs, step):
            stop = min(start + step, outputs)
            true = self.checkpoint.read_rows(f"{linear}.weight", start, stop)
            square += _square(true)
            error += _square(true - dequantize_rows(weight, start, stop))
        relative = error / square if square else 0.0
        return LayerReport(linear, weight.bits, relative, output_error)

    def _outer_tensors(self) -> tuple[Tensors, list[LayerReport]]:
        """Return what belongs to no block: embedding, last norm, head; there is no linear."""
        blocks = tuple(f"{block}." for block in self.decoder.blocks())
        tensors: Tensors = {}
        for name in self.decoder.tensor_shapes():
            if name.startswith(blocks):
                continue
            module = name.rpartition(".")[0]
            if self.layout.embedding_bits == 8 and module in self.layout.embeddings():
                tensors |= self._embedding_tensors(name)
            else:
                tensors[name] = self._plain_tensor(name)
        return tensors, []

    def _plain_tensor(self, name: str) -> tuple[str, Array]:
        """Return dtype and raw values of an unquantized tensor, converted piece by piece."""
        shape, dtype = self.checkpoint.shape(name), self.checkpoint.dtype(name)
        raw = np.empty(shape, DTYPES[dtype])
        for rows in _pieces(shape):
            raw[rows] = from_float32(self.checkpoint.read_rows(name, rows.start, rows.stop), dtype)
        return dtype, raw

    def _embedding_tensors(self, name: str) -> Tensors:
        shape = self.checkpoint.shape(name)
        levels, scales = np.empty(shape, np.int8), np.empty(shape[0], np.float32)
        for rows in _pieces(shape):
            values = self.checkpoint.read_rows(name, rows.start, rows.stop)
            levels[rows], scales[rows] = packed_writer.round_embedding(values)
        return {name: ("I8", levels), f"{name}_scale": ("F32", scales)}

    def tune(self) -> None:
        """Tune scales and norms end to end, if the method does; else nothing."""
        if self.calibrated is None or not self.settings.steps:
            return
        self._write_config()
        tuned = self.calibrated.tune(PackedModel(self.folder, golden=False))
        for shard in self.shards:
            tuned_shards.rewrite(self.folder / shard, tuned, self.layout)

    def _write_config(self) -> None:
        config = packed_config.write_config(self.layout, self.settings, self.description)
        config["source"] = self.checkpoint.source_hash()
        packed_writer.write_config(self.folder, self.checkpoint.config, config)
        packed_writer.write_index(self.folder, self.shards)

    def finish(self) -> None:
        """Write everything that is not a shard, the golden file last, and drop the state."""
        self._write_config()
        reports = (fields for shard in self.shards for fields in self.finished.reports[shard])
        costs = self.calibrated.known_costs() if self.calibrated else {}
        quantization_report.write(self.folder, reports, costs)
        for name, content in self.tokenizer.items():
            (self.folder / name).write_bytes(content)
        self.stages.report("end", 1.0, "golden logits")
        model = PackedModel(self.folder, golden=False)
        computed = golden.compute(model, self.tokenizer)
        packed_writer.write_golden(self.folder, computed)
        PackedModel(self.folder)
        self.stages.report("end", 1.0, "publishing")
        if self.calibrated:
            StatisticsStore(self.folder / STATISTICS).remove()
        self.finished.remove_state()


def _identity(checkpoint: Checkpoint, settings: QuantizeSettings) -> dict[str, object]:
    """Return what shards must be of to be gone on with."""
    return {
        "format": packed_config.VERSION,
        "method": METHOD,
        "source": checkpoint.source_hash(),
        "settings": settings.to_dict(),
        "text": _text_digest(settings),
    }


def _check_magnitude(checkpoint: Checkpoint, linear: str, values: Array) -> None:
    """Raise `BadFileError` for weights that no scale can hold."""
    largest = float(max(values.max(), -values.min()))
    if largest > MAX_MAGNITUDE:
        raise BadFileError(
            f"{checkpoint.path}: tensor {linear}.weight holds values up to {largest:.3g}, expected "
            f"at most {MAX_MAGNITUDE:.3g}; get it again."
        )


def _text_digest(settings: QuantizeSettings) -> str | None:
    """Return what changes with the calibration text; raise where it cannot be read."""
    if not settings.calibrated or settings.calibration_text is None:
        return None
    text = calibration_text.read_text(Path(settings.calibration_text))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _pieces(shape: tuple[int, ...]) -> list[slice]:
    step = max(1, _PIECE * shape[0] // math.prod(shape))
    return [slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]


def _square(values: Array) -> float:
    return float(np.square(values, dtype=np.float64).sum())
