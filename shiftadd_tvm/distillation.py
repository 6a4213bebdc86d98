"""Tune what multiplies nothing: scales and norms of a coded model, end to end, against the original.

The loss is KL(original || coded) of the next token's distribution, averaged over the tokens of the
calibration windows (knowledge distillation, Hinton et al. 2015). The codes and c stay; r, s and every
vector of the blocks and of the last norm (norm gains, biases) move, r and s on the powers of two
that will be stored (`coded_modules.py`).

The optimizer is Adam on logarithms of the scales, with a short warm-up and a cosine decay. Its state
is small, and written every few steps, so that an interrupted run goes on to the same result.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from shiftadd_tvm import heap
from shiftadd_tvm.bcq import SeparableScales
from shiftadd_tvm.coded_modules import CodedLinear, Rotated, codes_of
from shiftadd_tvm.dequantized import DequantizedModel
from shiftadd_tvm.effort import WHOLE_BLOCKS
from shiftadd_tvm.packed import PackedModel
from shiftadd_tvm.powers import decode_terms
from shiftadd_tvm.reference import Arguments, ReferenceModel, soft_cap, uncapped
from shiftadd_tvm.tensorfile import TensorFile, write_tensors

Array = np.ndarray

RATE = 1e-3  # of the logarithms, at its peak
BETAS = (0.9, 0.95)
WARM_UP = 4  # steps
SKIP = 2  # of so many neighbouring tokens one counts in a step: neighbours say nearly the same
_HEAD_ROWS, _HEAD_LOGITS = 256, 6 << 20  # rows and logits that exist together, at most
_TINY = 1e-12
_SAVE_EVERY = 10  # steps


@dataclass(frozen=True)
class Recipe:
    """How long to tune, and in what portions."""

    steps: int
    windows: int = 1  # a step
    seed: int = 0


class Adam:
    """Adam (Kingma and Ba 2015); scales move in their logarithms, vectors as they are."""

    def __init__(self, scales: list[Tensor], vectors: list[Tensor]) -> None:
        self.parameters = [*scales, *vectors]
        self._relative = [True] * len(scales) + [False] * len(vectors)
        self.mean = [torch.zeros_like(p) for p in self.parameters]
        self.square = [torch.zeros_like(p) for p in self.parameters]
        self.steps = 0

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Move every parameter by its gradient, which is dropped."""
        self.steps += 1
        corrections = [1 - beta**self.steps for beta in BETAS]
        rows = zip(self.parameters, self._relative, self.mean, self.square, strict=True)
        for parameter, relative, mean, square in rows:
            if parameter.grad is None:  # an expert that no token went through
                continue
            slope = parameter.grad * parameter if relative else parameter.grad
            mean.lerp_(slope, 1 - BETAS[0])
            square.lerp_(slope.square(), 1 - BETAS[1])
            move = (mean / corrections[0]) / ((square / corrections[1]).sqrt() + _TINY) * rate
            if relative:
                parameter.mul_(torch.exp(-move))
            else:
                parameter.sub_(move)
            parameter.grad = None


def divergences(
    students: Sequence[Tensor], teacher: Tensor, head: Tensor, cap: float = 0.0
) -> list[float]:
    """Return the mean KL, in nats, of each of the states (n, hidden) against the original's; `cap` is the
    soft cap of logits, 0 for none."""
    totals = [0.0] * len(students)
    for part in _parts(len(teacher), head):
        wanted = _log_probabilities(teacher[part], head, cap)
        likely = wanted.exp()
        for index, student in enumerate(students):
            found = _log_probabilities(student[part], head, cap)
            totals[index] += float((likely * (wanted - found)).sum())
    return [total / len(teacher) for total in totals]


def divergence_and_gradient(
    student: Tensor, teacher: Tensor, head: Tensor, cap: float = 0.0
) -> tuple[float, Tensor]:
    """Return what `divergences` does of one, and its gradient by the states of `student`, same shape."""
    gradient, total = torch.empty_like(student), 0.0
    for part in _parts(len(student), head):
        wanted = _log_probabilities(teacher[part], head, cap)
        likely = wanted.exp()
        logits = soft_cap(student[part] @ head.T, cap)
        found = torch.log_softmax(logits, 1)
        total += float((likely * (wanted - found)).sum())
        gradient[part] = uncapped(found.exp_().sub_(likely), logits, cap) @ head
    return total / len(student), gradient / len(student)


def _log_probabilities(states: Tensor, head: Tensor, cap: float) -> Tensor:
    return torch.log_softmax(soft_cap(states @ head.T, cap), 1)


def _parts(rows: int, head: Tensor) -> Iterator[slice]:
    """Yield runs of rows whose logits exist together."""
    step = min(_HEAD_ROWS, max(1, _HEAD_LOGITS // len(head)))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def schedule(recipe: Recipe, windows: int) -> Iterator[tuple[int, Array, float]]:
    """Yield step, the indices of its windows, and the rate."""
    order = np.random.Generator(np.random.PCG64(recipe.seed)).permutation(windows)
    for step in range(recipe.steps):
        first = step * recipe.windows
        chosen = order[np.arange(first, first + recipe.windows) % windows]
        decay = 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
        yield step, chosen, RATE * min(1.0, (step + 1) / WARM_UP) * decay


class Student:
    """A packed model with separable scales, ready to be tuned; it is kept in memory whole."""

    def __init__(self, packed: PackedModel, device: str = "cpu") -> None:
        self._reference = ReferenceModel(DequantizedModel(packed), keep=True, device=device)
        self._decoder, self._packed = packed.decoder, packed
        self.rotated: dict[str, Rotated] = {}  # by the group's leader
        self.linears: dict[str, CodedLinear] = {}
        for group in self._decoder.input_groups():
            self._replace(group)
        for block in self._decoder.blocks():
            self._reference.load(block)
        self.vectors = self._find_vectors()
        self.head, self.cap = self._reference.head(), packed.decoder.logit_cap

    def _replace(self, group: tuple[str, ...]) -> None:
        """Put coded modules in the place of the linears of `group`."""
        device = self._reference.device
        for path in group:
            weight = self._packed.weight(path)
            scales = weight.scales
            assert isinstance(scales, SeparableScales), "a packed model with separable scales"
            if path == group[0]:
                columns = torch.from_numpy(decode_terms(scales.column_terms))
                terms = scales.column_terms.shape[1]
                self.rotated[path] = Rotated(weight.rotation, columns.to(device), terms)
            bias = self._packed.read(f"{path}.bias") if self._has_bias(path) else None
            self.linears[path] = CodedLinear(
                codes_of(weight).to(device),
                torch.from_numpy(decode_terms(scales.row_terms)).to(device),
                self.rotated[group[0]],
                scales.row_terms.shape[1],
                None if bias is None else torch.from_numpy(bias).to(device),
            )
            self._reference.model.set_submodule(path, self.linears[path])

    def _has_bias(self, path: str) -> bool:
        return f"{path}.bias" in self._decoder.tensor_shapes()

    def _find_vectors(self) -> dict[str, Tensor]:
        """Return every one-dimensional tensor of the blocks and the last norm, by its name."""
        outer = [self._decoder.final_norm] if self._decoder.final_norm else []
        blocks = tuple(f"{path}." for path in (*self._decoder.blocks(), *outer))
        shapes = self._decoder.tensor_shapes()
        names = [n for n, shape in shapes.items() if len(shape) == 1 and n.startswith(blocks)]
        return {name: self._reference.model.get_parameter(name) for name in names}

    def parameters(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return scales and vectors by the names under which a state holds them."""
        scales = {f"{path}.columns": r.columns for path, r in self.rotated.items()}
        scales |= {f"{path}.rows": linear.rows for path, linear in self.linears.items()}
        return scales, self.vectors

    def states(self, windows: Array) -> Tensor:
        """Return the states after the last norm, float32 (W, T, hidden), with their graph.

        Two blocks of three keep only what enters them, and are computed again on the way back: a
        third of the memory of the activations, for a fifth of the time.
        """
        hidden, arguments = self._reference.enter(windows)
        hidden.requires_grad_()  # what a block keeps would else not be known to be needed
        for index, block in enumerate(self._decoder.blocks()):
            run = lambda x, block=block: self._run(block, x, arguments)
            hidden = checkpoint(run, hidden, use_reentrant=False) if index % WHOLE_BLOCKS else run(hidden)
        return self._reference.leave(hidden)

    def _run(self, block: str, hidden: Tensor, arguments: dict[str, Arguments]) -> Tensor:
        try:
            return self._reference.run(block, hidden, arguments)
        finally:  # a repeated run is broken off by an exception when all is known
            for path, rotated in self.rotated.items():
                if path.startswith(f"{block}."):
                    rotated.forget()


def tune(
    packed: PackedModel,
    windows: Array,
    teacher: Callable[[Array], Tensor],
    recipe: Recipe,
    state: Path,
    progress: Callable[[int, float], None],
    device: str = "cpu",
) -> dict[str, Array]:
    """Return the tuned scales and vectors, float32, by name: `<leader>.columns`, `<linear>.rows` and
    the vectors' own.

    `windows` are token ids, int64 (W, T); `teacher` gives the original's states on those of some
    indices (n,), float32 (n, T, hidden). `state` is a file by which an interrupted run goes on.
    `progress` gets the steps that are done and the divergence of the last one, in nats a token. The
    coded model lies on `device`.
    """
    student = Student(packed, device)
    scales, vectors = student.parameters()
    for parameter in vectors.values():
        parameter.requires_grad_()
    optimizer = Adam(list(scales.values()), list(vectors.values()))
    names = [*scales, *vectors]
    _read_state(state, names, optimizer)
    for step, chosen, rate in schedule(recipe, len(windows)):
        if step < optimizer.steps:
            continue
        loss = _accumulate(student, windows[chosen], teacher(chosen).to(device), step % SKIP)
        optimizer.step(rate)
        progress(step + 1, loss)
        if (step + 1) % _SAVE_EVERY == 0:
            _write_state(state, names, optimizer)
            heap.give_back()
    tuned = zip(names, optimizer.parameters, strict=True)
    return {name: parameter.detach().cpu().numpy() for name, parameter in tuned}


def _accumulate(student: Student, windows: Array, teacher: Tensor, first: int) -> float:
    """Add the gradient of a step to every parameter; return the divergence."""
    states = student.states(windows)
    wanted = teacher[:, first::SKIP]
    found = states.detach()[:, first::SKIP]
    hidden = found.shape[-1]
    flat = found.reshape(-1, hidden), wanted.reshape(-1, hidden)
    loss, slope = divergence_and_gradient(*flat, student.head, student.cap)
    gradient = torch.zeros_like(states)
    gradient[:, first::SKIP] = slope.reshape(found.shape)
    states.backward(gradient)
    return loss


def _write_state(path: Path, names: list[str], optimizer: Adam) -> None:
    kinds = {"value": optimizer.parameters, "mean": optimizer.mean, "square": optimizer.square}
    entries = [("steps", "I32", np.array([optimizer.steps], np.int32))]
    for kind, tensors in kinds.items():
        for name, tensor in zip(names, tensors, strict=True):
            entries.append((f"{kind}:{name}", "F32", tensor.detach().cpu().numpy()))
    temporary = path.with_name(path.name + ".tmp")
    write_tensors(temporary, entries, {"format": "pt"})
    temporary.replace(path)


def _read_state(path: Path, names: list[str], optimizer: Adam) -> None:
    """Take over the state of an interrupted run, if there is one."""
    if not path.is_file():
        return
    file = TensorFile(path)
    kinds = {"value": optimizer.parameters, "mean": optimizer.mean, "square": optimizer.square}
    with torch.no_grad():
        for kind, tensors in kinds.items():
            for name, tensor in zip(names, tensors, strict=True):
                tensor.copy_(torch.from_numpy(file.read(f"{kind}:{name}")))
    optimizer.steps = int(file.read("steps")[0])
