"""How well the expected loss of a coded linear ranks the loss that is measured.

`allocation.py` spends bits by an expectation: output error under H times the mean squared gradient at
the outputs. Here each linear alone is coded, in an otherwise untouched model, and the divergence of
the next token's distribution is measured on windows that the expectation has not seen.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from shiftadd_tvm import families
from shiftadd_tvm.calibrated import Calibrated
from shiftadd_tvm.checkpoint_base import Checkpoint
from shiftadd_tvm.dequantized import dequantize
from shiftadd_tvm.distillation import divergence
from shiftadd_tvm.quantizers import shiftadd
from shiftadd_tvm.reference import ReferenceModel
from shiftadd_tvm.settings import QuantizeSettings

Array = np.ndarray


class AloneCoded:
    """A model in which one linear at a time is coded."""

    def __init__(self, checkpoint: Checkpoint, windows: Array) -> None:
        """Pass `windows`, token ids int64 (W, T), through the original and keep what enters each
        block, float32 (W, T, hidden)."""
        self._checkpoint = checkpoint
        self._decoder = families.read_config(checkpoint.config, checkpoint.path)
        self._reference = ReferenceModel(checkpoint, keep=True)
        self._entrances: list[Tensor] = []
        with torch.no_grad():
            hidden, self._arguments = self._reference.enter(windows)
            for block in self._decoder.blocks():
                self._entrances.append(hidden)
                hidden = self._reference.run(block, hidden, self._arguments)
            self._states = self._reference.leave(hidden)

    @torch.no_grad()
    def divergence(self, linear: str, weights: Tensor) -> float:
        """Return the mean KL(original || coded), in nats a token, with `weights` (N, K) at `linear`."""
        blocks = self._decoder.blocks()
        first = next(i for i, block in enumerate(blocks) if linear.startswith(f"{block}."))
        module = self._reference.model.get_submodule(linear)
        kept = module.weight
        module.weight = torch.nn.Parameter(weights, requires_grad=False)
        hidden = self._entrances[first]
        for block in blocks[first:]:
            hidden = self._reference.run(block, hidden, self._arguments)
        module.weight = kept
        flat = lambda states: states.reshape(-1, states.shape[-1])
        states = self._reference.leave(hidden)
        return divergence(flat(states), flat(self._states), self._reference.head())[0]


def pairs(
    checkpoint: Checkpoint,
    run: Calibrated,
    settings: QuantizeSettings,
    bits: int,
    windows: Array,
    groups: Sequence[tuple[str, ...]],
    report: Callable[[str], None],
) -> Iterator[tuple[str, float, float]]:
    """Yield name, expected loss and measured divergence of every linear of the input `groups`, coded
    alone at `bits`.

    `run` has measured under `settings`: the expected losses are those by which it would allocate.
    """
    costs = run.costs_of(groups)
    alone = AloneCoded(checkpoint, windows)
    for group in groups:
        report(group[0])
        matrices = [checkpoint.read(f"{linear}.weight") for linear in group]
        widths = [bits] * len(group)
        coded = shiftadd.quantize(matrices, widths, run.hessian(group), settings, rounds=0)
        for linear, one in zip(group, coded, strict=True):
            weights = torch.from_numpy(dequantize(one.weight))
            yield linear, costs[linear][bits], alone.divergence(linear, weights)


def rank_correlation(expected: list[float], measured: list[float]) -> float:
    """Return Kendall's tau-b."""
    return float(stats.kendalltau(expected, measured).statistic)
