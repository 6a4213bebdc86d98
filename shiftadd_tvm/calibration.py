"""Calibration: run the unquantized model block by block and measure what its linears see.

Two walks over the blocks, in both of which the weights of one block exist at a time:

    Calibration            forward: the second moments H = E[x x'] of every input group's activation,
                           and at the end the model's own hidden states, which tuning aims at
    gradient_energies      forward and back: the mean squared gradient of the loss at every linear's
                           output, by which output errors of different linears compare

The sizes that stay: the hidden states of all windows, float32, and in the second walk those at the
entrance of every block. They lie in memory, or in files (`hidden_states.py`); in memory are then those of
`SLAB_TOKENS` tokens, and in the second walk those of all its windows three times.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from shiftadd_tvm import families, heap
from shiftadd_tvm.effort import GRADIENT_ROWS, SLAB_TOKENS
from shiftadd_tvm.hidden_states import InMemory, Place
from shiftadd_tvm.reference import Arguments, ReferenceModel, WeightSource

Array = np.ndarray

_HEAD_ROWS = 256  # whose logits exist together


class Calibration:
    """The activations of a model on calibration windows, from block to block."""

    def __init__(self, source: WeightSource, windows: Array, place: Place | None = None) -> None:
        """Enter the first block with `windows`, token ids int64 (W, T); states lie in `place`."""
        self._reference = ReferenceModel(source)
        self._decoder = families.read_config(source.config)
        self._shape, self._tokens = windows.shape, windows.size
        self._place = place or InMemory()
        self._slabs = []
        step = max(1, SLAB_TOKENS // windows.shape[1])
        for start in range(0, len(windows), step):
            hidden, arguments = self._reference.enter(windows[start : start + step])
            self._slabs.append((self._place.keep(hidden), arguments))

    @torch.no_grad()
    def run(self, block: str) -> dict[str, Tensor]:
        """Pass through `block`, the next one; return H, float32 (K, K), of each input group by the
        path of its first linear; there is none of experts that no token went through."""
        leaders = [g[0] for g in self._decoder.input_groups() if g[0].startswith(f"{block}.")]
        moments: dict[str, Tensor] = {}
        with self._watched(leaders, lambda path, x: _add_moments(moments, path, x)):
            self.pass_through(block)
        return {path: moment / self._tokens for path, moment in moments.items()}

    @torch.no_grad()
    def pass_through(self, block: str) -> None:
        """Pass through `block` without measuring it: it was finished in an earlier run."""
        with self._reference.loaded(block):
            for index, (take, arguments) in enumerate(self._slabs):
                hidden = self._reference.run(block, take(), arguments)
                self._slabs[index] = self._place.keep(hidden), arguments

    @torch.no_grad()
    def finish(self) -> Tensor:
        """Return the hidden states after the last norm, float32 (W, T, hidden)."""
        states, done = self._place.room((*self._shape, self._decoder.width)), 0
        for take, _ in self._slabs:
            part = self._reference.leave(take())
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
    rows = x.reshape(-1, x.shape[-1])
    if path in moments:
        moments[path].addmm_(rows.T, rows)
    else:
        moments[path] = rows.T @ rows


def gradient_energies(
    source: WeightSource, windows: Array, place: Place | None = None
) -> dict[str, float]:
    """Return the mean over tokens of |d loss / d y|^2 / N of each linear's output y (N,), by its
    path, 0 of experts that no token went through; the loss is the sum over `windows`, int64 (W, T),
    of the next tokens' negative log-likelihood. What enters the blocks lies in `place`."""
    place = place or InMemory()
    reference = ReferenceModel(source)
    decoder = families.read_config(source.config)
    entrances = []
    with torch.no_grad():
        hidden, arguments = reference.enter(windows)
        for block in decoder.blocks():
            entrances.append(place.keep(hidden))
            hidden = reference.run(block, hidden, arguments)
    gradient = _loss_gradient(reference, hidden, windows)
    energies: dict[str, float] = {}
    for block in reversed(decoder.blocks()):
        linears = {f"{block}.{name}": size for name, (size, _) in decoder.linear_shapes().items()}
        energies |= dict.fromkeys(linears, 0.0)
        entrance = entrances.pop()()
        gradient = _block_gradient(
            reference, block, entrance, gradient, arguments, linears, energies
        )
        heap.give_back()
    return {path: energy / windows.size for path, energy in energies.items()}


def _loss_gradient(reference: ReferenceModel, hidden: Tensor, windows: Array) -> Tensor:
    """Return the gradient of the loss by the states (W, T, hidden) that leave the last block."""
    hidden.requires_grad_()
    states = reference.leave(hidden)
    gradient = torch.zeros_like(states)
    targets = torch.from_numpy(windows[:, 1:])
    for row, (state, target) in enumerate(zip(states.detach(), targets, strict=True)):
        for start in range(0, len(target), _HEAD_ROWS):
            part = slice(start, min(start + _HEAD_ROWS, len(target)))
            logits = reference.logits(state[part])
            likely = torch.softmax(logits, dim=1)
            likely[torch.arange(len(likely)), target[part]] -= 1
            gradient[row, part] = reference.unembed(likely, logits)
    states.backward(gradient)
    assert hidden.grad is not None
    return hidden.grad


def _block_gradient(
    reference: ReferenceModel,
    block: str,
    entrance: Tensor,
    gradient: Tensor,
    arguments: dict[str, Arguments],
    linears: dict[str, int],
    energies: dict[str, float],
) -> Tensor:
    """Return the gradient at the entrance of `block`; note the energies of its linears."""

    def note(path: str, size: int, slope: Tensor) -> None:
        energies[path] += float(slope.square().sum()) / size

    def watch(path: str, size: int, output: Tensor) -> None:
        output.register_hook(lambda slope: note(path, size, slope))

    hooks = []
    for path, size in linears.items():
        hook = lambda module, inputs, output, path=path, size=size: watch(path, size, output)
        hooks.append(reference.model.get_submodule(path).register_forward_hook(hook))
    result, heads = torch.empty_like(entrance), reference.heads
    with reference.loaded(block):
        for start in range(0, len(entrance), GRADIENT_ROWS):
            part = slice(start, min(start + GRADIENT_ROWS, len(entrance)))
            x = entrance[part].detach().requires_grad_()
            own = arguments[block].of_rows(len(entrance), part, heads)
            reference.run(block, x, {block: own}).backward(gradient[part])
            assert x.grad is not None
            result[part] = x.grad
    for handle in hooks:
        handle.remove()
    return result
