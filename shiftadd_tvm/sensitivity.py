"""What each coded linear alone costs: the divergence of the next token's distribution, measured.

A walk over the blocks carries the original's states on a few calibration tokens and, beside them, one
variant for each linear of a few blocks: the states of a model in which that linear alone is coded. At
the end of the walk each variant is compared with the original,

    KL(original || coded), in nats a token,

which is the loss that the linear's coding brings. Gradients would be cheaper, but rank worse: what a few
tokens carry, and what softmaxes swallow, they do not see (docs/accuracy.md).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shiftadd_tvm import families
from shiftadd_tvm.distillation import divergences
from shiftadd_tvm.reference import ReferenceModel, WeightSource

Array = np.ndarray
CodedBlock = Callable[[str], Mapping[str, Tensor]]  # block -> coded weights (N, K) by linear

SKIP = 2  # of so many neighbouring tokens one is compared: neighbours say nearly the same


@dataclass(frozen=True)
class OutputErrors:
    """Of one linear: |X (W - What)'|^2 / |X W'|^2 by the bits of What, and |X W'|^2."""

    by_bits: dict[int, float]
    power: float

    def losses(self, loss: float, bits: int) -> dict[int, float]:
        """Return the loss by bits, if it is `loss` at `bits`, and goes with the error."""
        if not self.by_bits[bits]:
            return dict.fromkeys(self.by_bits, 0.0)
        return {other: loss * error / self.by_bits[bits] for other, error in self.by_bits.items()}

    def loss_of_one(self, loss: float, bits: int) -> float:
        """Return the loss that an output error of 1 brings, if it is `loss` at `bits`."""
        error = self.by_bits[bits] * self.power
        return loss / error if error else 0.0


class Sensitivity:
    """The original on some tokens, block by block, and what becomes of it where one linear is coded."""

    def __init__(self, source: WeightSource, windows: Array, device: str = "cpu") -> None:
        """Pass `windows`, token ids int64 (W, T), through the original, and enter its first block; all
        of it lies on `device`."""
        self._reference = ReferenceModel(source, device=device)
        self._decoder = families.read_config(source.config)
        self._blocks = self._decoder.blocks()
        self._hidden, self._arguments = self._reference.enter(windows)
        self._next = 0  # the block that the original enters next
        self._states = self._to_the_end({"": self._hidden}, 0)[""]

    @torch.no_grad()
    def measure(
        self, blocks: Sequence[str], coded: CodedBlock, report: Callable[[str], None]
    ) -> dict[str, float]:
        """Return the divergence that each of the `coded` linears of `blocks` brings alone.

        `blocks` follow each other, and come after those of an earlier call. `report` gets the name of
        every block that has been walked through.
        """
        self._skip_to(blocks[0])
        variants: dict[str, Tensor] = {}
        for block in blocks:
            weights = coded(block)
            with self._reference.loaded(block):
                variants = {name: self._run(block, states) for name, states in variants.items()}
                variants |= {name: self._with(block, name, weights[name]) for name in weights}
                self._hidden = self._run(block, self._hidden)
            self._next += 1
            report(block)
        ends = self._to_the_end(variants, self._next, report)
        names = list(ends)
        compared = [_compared(ends.pop(name)) for name in names]
        head, cap = self._reference.head(), self._decoder.logit_cap
        losses = divergences(compared, _compared(self._states), head, cap)
        return {name: max(0.0, loss) for name, loss in zip(names, losses, strict=True)}

    def _skip_to(self, block: str) -> None:
        while self._blocks[self._next] != block:
            passed = self._blocks[self._next]
            with self._reference.loaded(passed):
                self._hidden = self._run(passed, self._hidden)
            self._next += 1

    @torch.no_grad()
    def _to_the_end(
        self, states: dict[str, Tensor], first: int, report: Callable[[str], None] | None = None
    ) -> dict[str, Tensor]:
        """Return `states`, which enter block `first`, after the last norm."""
        for block in self._blocks[first:]:
            with self._reference.loaded(block):
                for name in states:
                    states[name] = self._run(block, states[name])
            if report:
                report(block)
        return {name: self._reference.leave(states.pop(name)) for name in list(states)}

    def _run(self, block: str, states: Tensor) -> Tensor:
        return self._reference.run(block, states, self._arguments)

    def _with(self, block: str, linear: str, weights: Tensor) -> Tensor:
        """Run the original's states through `block` with `weights` in the place of a linear's."""
        module = self._reference.model.get_submodule(linear)
        kept = module.weight
        if f"{linear}.weight" in self._decoder.transposed():
            weights = weights.T.contiguous()
        module.weight = torch.nn.Parameter(weights.to(kept.device), requires_grad=False)
        try:
            return self._run(block, self._hidden)
        finally:
            module.weight = kept


def _compared(states: Tensor) -> Tensor:
    """Return the states (n, hidden) of the tokens that are compared, of states (W, T, hidden)."""
    return states[:, ::SKIP].reshape(-1, states.shape[-1])
