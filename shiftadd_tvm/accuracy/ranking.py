"""How well the losses by which bits are chosen rank those of other text.

`allocation.py` spends bits by the loss of each linear coded alone, measured on a few tokens of the
calibration text. Here the same is measured on windows that calibration has not seen.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from shiftadd_tvm import families
from shiftadd_tvm.calibrated import Calibrated
from shiftadd_tvm.checkpoint_base import Checkpoint
from shiftadd_tvm.dequantized import dequantize
from shiftadd_tvm.quantizers import shiftadd
from shiftadd_tvm.sensitivity import Sensitivity
from shiftadd_tvm.settings import QuantizeSettings

Array = np.ndarray


def pairs(
    checkpoint: Checkpoint,
    run: Calibrated,
    settings: QuantizeSettings,
    bits: int,
    windows: Array,
    blocks: Sequence[str],
    report: Callable[[str], None],
) -> Iterator[tuple[str, float, float]]:
    """Yield name, expected loss and measured divergence of every linear of `blocks`, coded alone at
    `bits`; `windows` are token ids int64 (W, T).

    `run` has measured under `settings`: the expected losses are those by which it would allocate.
    """
    costs = run.costs_of(blocks)
    decoder = families.read_config(checkpoint.config)

    def coded(block: str) -> Mapping[str, Tensor]:
        weights = {}
        for group in decoder.groups_of(block):
            matrices = [checkpoint.read(f"{linear}.weight") for linear in group]
            widths = [bits] * len(group)
            found = shiftadd.quantize(matrices, widths, run.hessian(group), settings, rounds=0)
            for linear, one in zip(group, found, strict=True):
                weights[linear] = torch.from_numpy(dequantize(one.weight))
        return weights

    walk = Sensitivity(checkpoint, windows)
    for block in blocks:
        report(block)
        for linear, loss in walk.measure([block], coded, lambda _: None).items():
            yield linear, costs[linear][bits], loss


def rank_correlation(expected: list[float], measured: list[float]) -> float:
    """Return Kendall's tau-b."""
    return float(stats.kendalltau(expected, measured).statistic)
