"""Run a decoder artifact: a thin host around the functions in model.so.

Everything that computes (cache update, attention, sampling) is in the library; this host keeps pages,
lengths and tokens. The C library of a later version replaces it, so nothing clever lives here.
"""

import math
import mmap
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shiftadd_tvm.artifact import LIBRARY, Artifact
from shiftadd_tvm.errors import UnsupportedError, UsageError
from shiftadd_tvm.runtime import library
from shiftadd_tvm.tensorfile import ALIGNMENT

Array = np.ndarray


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; the defaults are greedy."""

    temperature: float = 0.0
    top_k: int = 0  # 0: off
    top_p: float = 1.0  # 1: off
    repetition_penalty: float = 1.0  # 1: off
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every value; raises `UsageError`."""
        for name, valid, expected in (
            ("temperature", 0 <= self.temperature < 1e6, "0 or more"),
            ("top-k", 0 <= self.top_k < 1 << 31, "0 or more"),
            ("top-p", 0 < self.top_p <= 1, "above 0, at most 1"),
            ("repetition-penalty", 0 < self.repetition_penalty < 1e6, "above 0"),
            ("seed", 0 <= self.seed < 1 << 63, "0 or more, below 2^63"),
        ):
            if not valid:
                found = getattr(self, name.replace("-", "_"))
                raise UsageError(f"--{name} is {found}, expected {expected}.")


def mapped_zeros(shape: tuple[int, ...]) -> Array:
    """Return float32 zeros on their own pages: aligned, and without memory until they are touched."""
    pages = mmap.mmap(-1, max(math.prod(shape) * 4, 1))
    return np.frombuffer(pages, np.float32, math.prod(shape)).reshape(shape)


def aligned(array: Array) -> Array:
    """Return `array`, or a copy of it that begins at a multiple of `ALIGNMENT` bytes."""
    if array.ctypes.data % ALIGNMENT == 0 and array.flags.c_contiguous:
        return array
    raw = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    copy = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


class Engine:
    """One loaded artifact: its functions, its mapped parameters, and a pool of cache pages."""

    def __init__(
        self, artifact: str | Path | Artifact, *, threads: int | None = None, sequences: int = 1
    ) -> None:
        """Load an artifact with room in the cache for `sequences` full contexts.

        Raises `BadFileError` for a damaged artifact, `UnsupportedError` where it cannot run here.
        """
        opened = artifact if isinstance(artifact, Artifact) else Artifact(artifact)
        if opened.manifest["kind"] != "decoder":
            raise UnsupportedError(f"{opened.path} is not a decoder; it cannot generate text.")
        opened.check_machine()
        self.artifact = opened
        self.context = opened.number("limits", "context")
        self.page = opened.number("limits", "page")
        self.chunk = opened.number("limits", "chunk")
        self.logit_rows = opened.number("limits", "logit_rows")
        self.batches = sorted(opened.numbers("limits", "batches"))
        measured = "lookup_rows" in opened.section("limits")
        self.lookup_rows = opened.number("limits", "lookup_rows") if measured else 1
        self.vocabulary = opened.number("model", "vocabulary")
        self.eos = frozenset(opened.numbers("model", "eos"))
        library.configure_threads(threads)
        self._functions = library.load_functions(opened.path / LIBRARY)
        self._ffi = library.import_ffi()
        tensors = [self.tensor(array) for array in opened.load_parameters()]
        self._parameters = self._ffi.convert(tensors)
        self._worker = ThreadPoolExecutor(1, "shiftadd")
        self._allocate(sequences)

    def _allocate(self, sequences: int) -> None:
        sizes = [self.artifact.number("model", key) for key in ("layers", "kv_heads", "head_dim")]
        layers, heads, head_dim = sizes
        self.width = -(-self.context // self.page)  # pages of a full context
        pages = self.width * sequences
        shapes = (
            (layers, pages, heads, head_dim, self.page),
            (layers, pages, heads, self.page, head_dim),
        )
        self._keys, self._values = (self.tensor(mapped_zeros(shape)) for shape in shapes)
        self.free_pages = list(range(pages))[::-1]

    def tensor(self, array: Array) -> Any:
        """Return `array` as a tensor of the runtime; copied only where kernels could not load from
        it (they use aligned vector loads)."""
        return self._ffi.from_dlpack(aligned(array))

    def call(self, name: str, *arguments: Any, parameters: bool = True) -> Any:
        """Call an exported function with arrays or tensors; the parameters come last.

        One thread makes all calls, whoever asks: TVM keeps a pool of threads for each that calls.
        """
        tensors = [self.tensor(a) if isinstance(a, np.ndarray) else a for a in arguments]
        bundle = [self._parameters] if parameters else []
        return self._worker.submit(self._functions[name], *tensors, *bundle).result()

    def prefill(self, tokens: Array, table: Array, length: int) -> Any:
        """Append tokens (n,) int32, n <= chunk, to one sequence; return hidden states (n, hidden)."""
        x = self.call("embed", tokens)
        start = np.array([length], np.int32)
        return self.call("prefill", x, self._keys, self._values, table[None], start)

    def decode(self, tokens: Array, tables: Array, lengths: Array) -> Any:
        """Append one token to each of b sequences: tokens (b,), tables (b, width), lengths (b,) int32;
        return logits (b, vocabulary)."""
        name = f"decode_b{len(tokens)}"
        return self.call(name, tokens, self._keys, self._values, tables, lengths)

    def logits(self, hidden: Array) -> Array:
        """Return the logits float32 (n, vocabulary) of hidden states (n, hidden), n <= logit_rows."""
        return np.from_dlpack(self.call("logits", hidden))

    def session(self) -> "Session":
        """Return a new, empty sequence."""
        return Session(self)


class Session:
    """One sequence: its tokens, and the pages that hold their keys and values."""

    def __init__(self, engine: Engine) -> None:
        """Start empty; pages are taken from the engine's pool as the sequence grows."""
        self.engine = engine
        self.tokens: list[int] = []
        self._pages: list[int] = []

    def close(self) -> None:
        """Give the pages back; the session is empty afterwards."""
        self.engine.free_pages += self._pages[::-1]
        self._pages, self.tokens = [], []

    def table(self) -> Array:
        """Return the page table (width,) int32."""
        table = np.zeros(self.engine.width, np.int32)
        table[: len(self._pages)] = self._pages
        return table

    def reserve(self, count: int) -> None:
        """Take the pages that `count` more tokens need; raises `UsageError` past the context."""
        engine, total = self.engine, len(self.tokens) + count
        if total > engine.context:
            raise UsageError(
                f"The sequence would grow to {total} tokens, the artifact's context is "
                f"{engine.context}; shorten it, or compile with a larger --context."
            )
        while len(self._pages) * engine.page < total:
            if not engine.free_pages:
                raise UsageError("The cache has no free page; close a session, or load more.")
            self._pages.append(engine.free_pages.pop())

    def check(self, tokens: Sequence[int]) -> None:
        """Raise `UsageError` for a token id outside the vocabulary."""
        for token in tokens:
            if not 0 <= token < self.engine.vocabulary:
                raise UsageError(
                    f"Token id {token} is outside the vocabulary of {self.engine.vocabulary}."
                )

    def hidden(self, tokens: Sequence[int]) -> Iterator[Array]:
        """Append tokens; yield their hidden states float32 (n, hidden), chunk by chunk."""
        self.check(tokens)
        self.reserve(len(tokens))
        for start in range(0, len(tokens), self.engine.chunk):
            part = np.array(tokens[start : start + self.engine.chunk], np.int32)
            states = self.engine.prefill(part, self.table(), len(self.tokens))
            self.tokens += part.tolist()
            yield np.from_dlpack(states)

    def prefill(self, tokens: Sequence[int]) -> Array:
        """Append tokens (at least one); return the last one's logits float32 (1, vocabulary)."""
        if not tokens:
            raise UsageError("The prompt is empty; give at least one token.")
        if len(tokens) <= self.engine.lookup_rows and len(tokens) in self.engine.batches:
            return self._look_up(tokens)
        for states in self.hidden(tokens):
            last = states[-1:]
        return self.engine.logits(np.ascontiguousarray(last))

    def _look_up(self, tokens: Sequence[int]) -> Array:
        # a step appends all its rows before any attends, so they may be of one sequence
        self.check(tokens)
        self.reserve(len(tokens))
        tables = np.repeat(self.table()[None], len(tokens), axis=0)
        lengths = np.arange(len(tokens), dtype=np.int32) + np.int32(len(self.tokens))
        logits = self.engine.decode(np.array(tokens, np.int32), tables, lengths)
        self.tokens += tokens
        return np.from_dlpack(logits)[-1:]

    def decode(self, token: int) -> Array:
        """Append one token; return its logits float32 (1, vocabulary)."""
        return decode([self], [token])

    def sample(self, logits: Array, sampling: Sampling, step: int) -> int:
        """Return the next token for logits (1, vocabulary); `step` counts the tokens drawn before."""
        penalized = len(self.tokens) if sampling.repetition_penalty != 1 else 0
        history = np.array([self.tokens if penalized else [0]], np.int32)
        drawn = self.engine.call(
            "sample",
            logits,
            history,
            np.array([penalized], np.int32),
            np.array([sampling.temperature], np.float32),
            np.array([sampling.top_k], np.int32),
            np.array([sampling.top_p], np.float32),
            np.array([sampling.repetition_penalty], np.float32),
            np.array([sampling.seed], np.int64),
            np.array([step], np.int32),
            parameters=False,
        )
        return int(np.from_dlpack(drawn)[0])

    def generate(
        self, prompt: Sequence[int], new_tokens: int, sampling: Sampling | None = None
    ) -> Iterator[int]:
        """Append the prompt, then yield up to `new_tokens` tokens; ends before an end-of-sequence
        token and at the end of the context."""
        sampling = sampling or Sampling()
        logits = self.prefill(prompt)
        for step in range(new_tokens):
            token = self.sample(logits, sampling, step)
            if token in self.engine.eos:
                return
            yield token
            if step + 1 == new_tokens or len(self.tokens) == self.engine.context:
                return
            logits = self.decode(token)


def decode(sessions: Sequence[Session], tokens: Sequence[int]) -> Array:
    """Append one token to each session (as many as the engine has a batch for); return their logits
    float32 (b, vocabulary)."""
    engine = sessions[0].engine
    if len(sessions) not in engine.batches:
        raise UsageError(f"{len(sessions)} sequences at once; expected one of {engine.batches}.")
    for session, token in zip(sessions, tokens, strict=True):
        session.check([token])
        session.reserve(1)
    tables = np.stack([session.table() for session in sessions])
    lengths = np.array([len(session.tokens) for session in sessions], np.int32)
    logits = engine.decode(np.array(tokens, np.int32), tables, lengths)
    for session, token in zip(sessions, tokens, strict=True):
        session.tokens.append(token)
    return np.from_dlpack(logits)
