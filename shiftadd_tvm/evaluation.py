"""Perplexity, by one protocol for every source: whoever has the logits scores windows, this adds them up.

The ids are cut into non-overlapping windows of W tokens, W - 1 of the text after BOS where the
tokenizer adds one; the last short window is dropped; each is scored on its own from its second
token on: exp(mean negative log-likelihood over all scored tokens), logits in float32, sums in
float64. What computes the logits is not known here.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from shiftadd_tvm.errors import UsageError

Array = np.ndarray
Progress = Callable[[int, int], None]  # windows done, windows in all


@dataclass(frozen=True)
class PerplexityResult:
    """Perplexity, the number of scored tokens, the number of windows, and the time it took."""

    perplexity: float
    tokens: int
    windows: int
    seconds: float


def windows(
    ids: Array, window: int = 512, bos: int | None = None, max_windows: int | None = None
) -> Array:
    """Return the scored windows, int64 (count, window), of ids (T,) without special tokens."""
    if window < 2:
        raise UsageError(f"A window of {window} tokens has nothing to score, expected at least 2.")
    taken = window if bos is None else window - 1
    count = len(ids) // taken
    if max_windows is not None:
        count = min(count, max_windows)
    if count < 1:
        raise UsageError(
            f"The text has {len(ids)} tokens, expected at least {taken} for one window; give a "
            "longer --text or a smaller --window."
        )
    cut = np.asarray(ids[: count * taken], np.int64).reshape(count, taken)
    if bos is None:
        return cut
    return np.concatenate([np.full((count, 1), bos, np.int64), cut], axis=1)


def summarize(
    scores: Iterable[Array], count: int, progress: Progress | None = None
) -> PerplexityResult:
    """Return the perplexity of `count` windows from their log-probabilities, as they come."""
    begin, total, tokens = time.perf_counter(), 0.0, 0
    for done, score in enumerate(scores, 1):
        total += float(np.sum(score, dtype=np.float64))
        tokens += len(score)
        if progress is not None:
            progress(done, count)
    seconds = time.perf_counter() - begin
    with np.errstate(over="ignore"):
        value = float(np.exp(np.float64(-total / tokens)))
    return PerplexityResult(value, tokens, count, seconds)


def log_probabilities(logits: Array, next_ids: Array) -> Array:
    """Return log softmax(logits)[next_ids], float64 (n,), of float32 logits (n, vocabulary).

    Give it a few hundred rows at a time: it works in float64.
    """
    below_peak = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    chosen: Array = below_peak[np.arange(len(logits)), next_ids]
    return chosen - np.log(np.exp(below_peak).sum(axis=1))
