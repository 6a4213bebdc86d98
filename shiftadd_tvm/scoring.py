"""Perplexity of whatever a path holds: an artifact by the engine, weights by the reference model.

One tokenizer and one protocol for all of them (`evaluation.py`), so that the numbers compare. The
reference needs torch and is imported only for weights; an artifact needs TVM's runtime alone.
"""

import functools
import importlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shiftadd_tvm import cpu, evaluation, original
from shiftadd_tvm.artifact import Artifact, is_artifact
from shiftadd_tvm.errors import BadFileError, UsageError
from shiftadd_tvm.evaluation import PerplexityResult, Progress
from shiftadd_tvm.packed import PackedModel, is_packed, open_packed
from shiftadd_tvm.runtime.text import Tokenizer

Array = np.ndarray
See = Callable[[int, int, Array], None]


@dataclass(frozen=True)
class Request:
    """What to score: a UTF-8 text file, in windows of how many tokens, and how many of them."""

    text: Path
    window: int = 512
    max_windows: int | None = None
    threads: int | None = None
    config: Path | None = None
    original: str | Path | None = None  # what an artifact was made from, to compare with


def score(path: str | Path, request: Request, progress: Progress | None = None) -> dict[str, object]:
    """Return perplexity, tokens, effective_bits and seconds, as the command line prints them; with an
    original, of an artifact, `kl` and `top1` too (`original.py`)."""
    text = read_text(request.text)
    compared: dict[str, float] = {}
    if is_artifact(Path(path)):
        result, bits, compared = _score_artifact(Artifact(path), text, request, progress)
    elif request.original is not None:
        raise UsageError(f"--original is for artifacts, and {path} is none; compile it first.")
    else:
        result, bits = _score_weights(path, text, request, progress)
    return {
        "perplexity": result.perplexity,
        "tokens": result.tokens,
        "windows": result.windows,
        "effective_bits": bits,
        "seconds": result.seconds,
        **compared,
    }


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise BadFileError(f"{path} cannot be read: {error.strerror or error}.") from None
    except UnicodeDecodeError as error:
        raise BadFileError(f"{path} is not UTF-8 text ({error.reason} at {error.start}).") from None


def _encode(tokenizer: Tokenizer, text: str, vocabulary: int) -> Array:
    ids = np.array(tokenizer.encode(text, bos=False), np.int64)
    if ids.max(initial=0) >= vocabulary:
        raise BadFileError(
            f"{tokenizer.origin}: its tokenizer gives token id {ids.max()}, the model's vocabulary "
            f"has {vocabulary}; use the tokenizer of the same checkpoint."
        )
    return ids


def _score_artifact(
    artifact: Artifact, text: str, request: Request, progress: Progress | None
) -> tuple[PerplexityResult, object, dict[str, float]]:
    tokenizer = Tokenizer(artifact.tokenizer_file, artifact.path)
    vocabulary = artifact.number("model", "vocabulary")
    ids = _encode(tokenizer, text, vocabulary)
    cut = evaluation.windows(ids, request.window, tokenizer.bos, request.max_windows)
    bits = artifact.section("quantization").get("effective_bits")
    if request.original is None:
        scores = _scores(artifact, cut, request.threads, lambda window, first, logits: None)
        return evaluation.summarize(scores, len(cut), progress), bits, {}
    how = (request.config, request.threads)
    with original.computed(request.original, cut, *how) as found:
        original.require_vocabulary(found, vocabulary)
        comparison = original.Comparison(found)
        scores = _scores(artifact, cut, request.threads, comparison.add)
        result = evaluation.summarize(scores, len(cut), progress)
    return result, bits, comparison.fields()


def _scores(
    artifact: Artifact, windows: Array, threads: int | None, see: See
) -> Iterator[Array]:
    """Yield the log-probabilities of the next tokens, float64 (T - 1,), of each window of ids (W, T);
    `see` gets its number, a token's and the logits (n, vocabulary) behind this and the following."""
    from shiftadd_tvm.runtime.engine import Engine

    engine = Engine(artifact, threads=threads)
    session = engine.session()
    for number, window in enumerate(windows):
        session.close()
        yield _score_window(session, window, functools.partial(see, number))


def _score_window(session: Any, window: Array, see: Callable[[int, Array], None]) -> Array:
    scores: list[Array] = []

    def consume(logits: Array) -> None:
        start = sum(map(len, scores))
        following = window[start + 1 : start + 1 + len(logits)]
        scored = logits[: len(following)]
        see(start, scored)
        scores.append(evaluation.log_probabilities(scored, following))

    session.score(window.tolist(), consume)
    return np.concatenate(scores)


def _score_weights(
    path: str | Path, text: str, request: Request, progress: Progress | None
) -> tuple[PerplexityResult, object]:
    if is_packed(path):
        packed: PackedModel | None = open_packed(path)
        assert packed is not None
        source = importlib.import_module("shiftadd_tvm.dequantized").DequantizedModel(packed)
        files, bits = packed.tokenizer_files(), packed.effective_bits()
    else:
        checkpoints = importlib.import_module("shiftadd_tvm.checkpoint")
        source = checkpoints.open_checkpoint(path, request.config)
        files, bits = source.tokenizer_files(), checkpoint_bits(source)
    vocabulary = importlib.import_module("shiftadd_tvm.families").read_config(source.config).vocabulary
    tokenizer = Tokenizer(files.get, path)
    ids = _encode(tokenizer, text, vocabulary)
    torch = importlib.import_module("torch")
    torch.set_num_threads(request.threads or cpu.cores())
    reference = importlib.import_module("shiftadd_tvm.reference")
    result = reference.perplexity(
        source, ids, request.window, tokenizer.bos, request.max_windows, progress
    )
    return result, bits


def checkpoint_bits(checkpoint: Any) -> float:
    """Return the bits per weight of a checkpoint's linears, as they are stored."""
    families = importlib.import_module("shiftadd_tvm.families")
    decoder = families.read_config(checkpoint.config, checkpoint.path)
    weights = bits = 0
    for group in decoder.input_groups():
        for linear in group:
            name = f"{linear}.weight"
            count = math.prod(checkpoint.shape(name))
            weights += count
            bits += 8 * checkpoint.stored_bytes(name)
    return bits / weights
