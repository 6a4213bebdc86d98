"""How far an artifact's distributions are from those of the model that it was made from.

    kl     mean over the scored tokens of KL(original || artifact), in nats: sum p (log p - log q)
    top1   share of them for which both think the same next token the likeliest

The original runs in a child process, since torch and an engine do not share one: it leaves its states
and its head in a folder, and its logits are computed from these a few rows at a time, in float32.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shiftadd_tvm.errors import GateError, ShiftAddError, UsageError

Array = np.ndarray

WINDOWS, STATES, HEAD = "windows.npy", "states.npy", "head.npy"
_ROWS = 64  # whose distributions exist together


@dataclass(frozen=True)
class Original:
    """What the original says of some windows: states float32 (W, T, hidden) and head (vocabulary,
    hidden); `cap` is the soft cap of its logits, 0 for none."""

    states: Array
    head: Array
    cap: float

    def logits(self, window: int, rows: slice) -> Array:
        """Return the logits, float32 (n, vocabulary), behind tokens `rows` of a window."""
        logits: Array = self.states[window, rows] @ self.head.T
        return self.cap * np.tanh(logits / self.cap) if self.cap else logits


class Comparison:
    """Adds up how distributions differ."""

    def __init__(self, original: Original) -> None:
        """Nothing is compared yet."""
        self._original = original
        self._divergence, self._same, self._tokens = 0.0, 0, 0

    def add(self, window: int, first: int, logits: Array) -> None:
        """Compare logits, float32 (n, vocabulary), behind the tokens from `first` on of a window."""
        for start in range(0, len(logits), _ROWS):
            part = logits[start : start + _ROWS]
            rows = slice(first + start, first + start + len(part))
            wanted = self._original.logits(window, rows)
            self._same += int((wanted.argmax(1) == part.argmax(1)).sum())
            expected, found = log_softmax(wanted), log_softmax(part)
            self._divergence += float((np.exp(expected) * (expected - found)).sum(dtype=np.float64))
            self._tokens += len(part)

    def fields(self) -> dict[str, float]:
        """Return `kl` and `top1`, as the command line prints them."""
        return {"kl": self._divergence / self._tokens, "top1": self._same / self._tokens}


def log_softmax(logits: Array) -> Array:
    """Return the logarithms of the probabilities of logits (n, vocabulary), same dtype."""
    below = logits - logits.max(axis=1, keepdims=True)
    found: Array = below - np.log(np.exp(below).sum(axis=1, keepdims=True))
    return found


@contextmanager
def computed(
    source: str | Path, windows: Array, config: Path | None, threads: int | None
) -> Iterator[Original]:
    """Yield what the checkpoint (or packed model) at `source` says of windows, ids int64 (W, T).

    Raises what reading it raises, and `GateError` where the child process dies.
    """
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / WINDOWS, windows)
        asked = {"source": str(source), "folder": folder, "threads": threads}
        asked["config"] = None if config is None else str(config)
        cap = _run(json.dumps(asked))
        states, head = (np.load(Path(folder) / name, mmap_mode="r") for name in (STATES, HEAD))
        yield Original(states, np.asarray(head), cap)


def _run(request: str) -> float:
    command = [sys.executable, "-m", "shiftadd_tvm.original_states", request]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    last = (child.stderr.strip().splitlines() or ["no output"])[-1]
    for kind in ShiftAddError.__subclasses__():
        if child.returncode == kind.exit_code:
            raise kind(last)
    if child.returncode:
        raise GateError(
            f"The original could not be run (exit status {child.returncode}: {last}); please report it "
            "with the command you ran."
        )
    return float(json.loads(child.stdout.splitlines()[-1])["cap"])


def require_vocabulary(original: Original, vocabulary: int) -> None:
    """Raise `UsageError` unless the original has as many tokens as the artifact."""
    if len(original.head) != vocabulary:
        raise UsageError(
            f"--original has {len(original.head)} tokens, the artifact {vocabulary}; give the checkpoint "
            "that it was made from."
        )
