"""Score methods on a model: calibrate once, replace the linears, perplexity, one row each.

A folder holds what is finished, so that an interrupted run goes on where it stopped:

    <calibration>/moments/               H of every input group
    <calibration>/<text>/rows/*.json     finished rows
    <calibration>/<row>/                 dequantized linears of the row in work, gone when it is scored

<calibration> and <text> are digests of the checkpoint and of the tokens, so nothing is mixed up; a
row also carries a digest of the sources that made it, and is made anew after a change.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from shiftadd_tvm import error_feedback, evaluation, families
from shiftadd_tvm.accuracy.method import Method
from shiftadd_tvm.accuracy.moments import Moments
from shiftadd_tvm.accuracy.replaced import ReplacedLinears
from shiftadd_tvm.accuracy.rows import Row, RowStore, code_digest, digest
from shiftadd_tvm.checkpoint_base import Checkpoint
from shiftadd_tvm.errors import BadFileError
from shiftadd_tvm.reference import ReferenceModel, WeightSource, one_thread

Array = np.ndarray
Report = Callable[[str], None]

REFERENCE = "reference"


class Harness:
    """One model on one calibration and one text."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        folder: Path,
        calibration: Array,
        windows: Array,
        report: Report,
    ) -> None:
        """Both token arrays are int64 (W, T); `windows` are scored as `evaluation.windows` cut them."""
        self._checkpoint, self._calibration, self._windows = checkpoint, calibration, windows
        self._report = report
        self._decoder = families.read_config(checkpoint.config, checkpoint.path)
        _check_vocabulary(checkpoint, self._decoder.vocabulary, calibration, windows)
        self._maker = code_digest()
        self._folder = folder / digest(checkpoint.source_hash().encode(), calibration.tobytes())
        scored = digest(str(windows.shape).encode(), windows.tobytes())
        self.rows = RowStore(self._folder / scored / "rows")
        self._moments = Moments(self._decoder, self._folder / "moments")

    def reference(self) -> Row:
        """Return the row of the checkpoint itself, its linears counted as float16."""
        return self.rows.get(REFERENCE, self._maker, self._score_reference)

    def _score_reference(self) -> Row:
        self._report("reference: scoring")
        found = self._perplexity(self._checkpoint)
        return Row(REFERENCE, 16, 16, found, 0.0, None, False, "the checkpoint in float32", 0.0)

    def gap(self, perplexity: float) -> float:
        """Return ln(perplexity / reference perplexity)."""
        return math.log(perplexity / self.reference().perplexity)

    def row(self, method: Method, bits: int) -> Row:
        """Return the row of a method at so many bits; raises what the method raises."""
        name = f"{method.name}-{bits}bit"
        return self.rows.get(name, self._maker, lambda: self._make(method, bits, name))

    def _make(self, method: Method, bits: int, name: str) -> Row:
        self._moments.measure(self._checkpoint, self._calibration, self._report)
        replaced = ReplacedLinears(self._checkpoint, self._folder / name, self._maker)
        for group in self._decoder.input_groups():
            missing = [linear for linear in group if linear not in replaced.notes()]
            if missing:
                self._report(f"{name}: {group[0]}")
                self._replace(method, bits, missing, self._moments.of(group), replaced)
        self._report(f"{name}: scoring")
        perplexity = self._perplexity(replaced)
        row = _summarize(method, bits, perplexity, self.gap(perplexity), replaced.notes())
        replaced.remove()
        return row

    def _replace(
        self,
        method: Method,
        bits: int,
        linears: list[str],
        hessian: Tensor,
        replaced: ReplacedLinears,
    ) -> None:
        for linear in linears:
            weights = torch.from_numpy(self._checkpoint.read(f"{linear}.weight"))
            begin = time.process_time()  # on one thread: what else runs does not count
            with one_thread(), torch.inference_mode():
                made = method.quantize(weights, hessian, bits)
            seconds = time.process_time() - begin
            error = error_feedback.relative_output_error(weights, made.weights, hessian)
            note = [weights.numel(), made.bits, seconds, error]
            replaced.put(linear, made.weights.numpy(), note)

    def _perplexity(self, source: WeightSource) -> float:
        scores = ReferenceModel(source).score(self._windows)
        return evaluation.summarize(scores, len(self._windows)).perplexity


def _summarize(
    method: Method, bits: int, perplexity: float, gap: float, notes: dict[str, object]
) -> Row:
    """Return the row of linears noted as (weights, bits of a weight, seconds, output error)."""
    counts, stored, seconds, errors = np.array(list(notes.values()), np.float64).T
    share = counts / counts.sum()
    return Row(
        method=method.name,
        nominal_bits=bits,
        effective_bits=float(share @ stored),
        perplexity=perplexity,
        gap=gap,
        seconds=float(seconds.sum()),
        multiplication_free=method.multiplication_free,
        remark=method.remark,
        output_error=float(share @ errors),
    )


def _check_vocabulary(checkpoint: Checkpoint, vocabulary: int, *arrays: Array) -> None:
    largest = max(int(array.max()) for array in arrays)
    if largest >= vocabulary:
        raise BadFileError(
            f"{checkpoint.path}: its tokenizer gives token id {largest}, expected ids below the "
            f"vocab_size {vocabulary} of config.json; use the tokenizer of the same checkpoint."
        )
