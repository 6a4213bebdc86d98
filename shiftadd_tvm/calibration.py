"""Calibration: run the unquantized model block by block and measure what its linears see.

One walk over the blocks, in which the weights of one block exist at a time: the second moments
H = E[x x'] of every input group's activation, and at the end the model's own hidden states, which tuning
aims at. The hidden states of all windows stay, float32. They lie in memory, or in files
(`hidden_states.py`); in memory are then those of `SLAB_TOKENS` tokens. A GPU holds those of one slab.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from shiftadd_tvm import families
from shiftadd_tvm.effort import SLAB_TOKENS
from shiftadd_tvm.hidden_states import InMemory, Place
from shiftadd_tvm.reference import ReferenceModel, WeightSource

Array = np.ndarray

_PARTS = 4  # of the rows of H: what lies right of the diagonal's block of each is not computed


class Calibration:
    """The activations of a model on calibration windows, from block to block."""

    def __init__(
        self,
        source: WeightSource,
        windows: Array,
        place: Place | None = None,
        device: str = "cpu",
    ) -> None:
        """Enter the first block with `windows`, token ids int64 (W, T); states lie in `place`, and
        come to `device` a slab at a time."""
        self._reference = ReferenceModel(source, device=device)
        self._decoder = families.read_config(source.config)
        self._shape, self._tokens = windows.shape, windows.size
        self._place = place or InMemory()
        self._slabs = []
        step = max(1, SLAB_TOKENS // windows.shape[1])
        for start in range(0, len(windows), step):
            hidden, arguments = self._reference.enter(windows[start : start + step])
            self._slabs.append((self._place.keep(hidden.cpu()), arguments))

    @torch.no_grad()
    def run(self, block: str) -> dict[str, Tensor]:
        """Pass through `block`, the next one; return H, float32 (K, K), of each input group by the
        path of its first linear; there is none of experts that no token went through."""
        leaders = [group[0] for group in self._decoder.groups_of(block)]
        moments: dict[str, Tensor] = {}
        with self._watched(leaders, lambda path, x: _add_moments(moments, path, x)):
            self.pass_through(block)
        return {path: (_whole(moment) / self._tokens).cpu() for path, moment in moments.items()}

    @torch.no_grad()
    def pass_through(self, block: str) -> None:
        """Pass through `block` without measuring it: it was finished in an earlier run."""
        with self._reference.loaded(block):
            for index, (take, arguments) in enumerate(self._slabs):
                entering = take().to(self._reference.device)
                hidden = self._reference.run(block, entering, arguments).cpu()
                self._slabs[index] = self._place.keep(hidden), arguments

    @torch.no_grad()
    def finish(self) -> Tensor:
        """Return the hidden states after the last norm, float32 (W, T, hidden); those before it are
        let go of on the way."""
        states, done = self._place.room((*self._shape, self._decoder.width)), 0
        while self._slabs:
            take, _ = self._slabs.pop(0)
            part = self._reference.leave(take().to(self._reference.device))
            states[done : done + len(part)] = part
            done += len(part)
        return states

    @contextmanager
    def _watched(self, paths: list[str], note: Callable[[str, Tensor], None]) -> Iterator[None]:
        hooks = []
        for path in paths:
            hook = lambda module, inputs, path=path: note(path, inputs[0])
            module = self._reference.model.get_submodule(path)
            hooks.append(module.register_forward_pre_hook(hook))
        yield
        for handle in hooks:
            handle.remove()


def _add_moments(moments: dict[str, Tensor], path: str, x: Tensor) -> None:
    """Add x' x, of which the blocks on and below the diagonal are computed."""
    rows, width = x.reshape(-1, x.shape[-1]), x.shape[-1]
    if path not in moments:
        moments[path] = torch.zeros(width, width, device=x.device)
    step = -(-width // _PARTS)
    for start in range(0, width, step):
        stop = min(start + step, width)
        moments[path][start:stop, :stop].addmm_(rows[:, start:stop].T, rows[:, :stop])


def _whole(moment: Tensor) -> Tensor:
    """Return the symmetric matrix whose lower triangle is that of `moment`."""
    return moment.tril() + moment.tril(-1).T
