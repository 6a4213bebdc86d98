"""Run an artifact: libshiftadd, as Python's own classes. Nothing is computed or decided here."""

import contextlib
import ctypes
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shiftadd_tvm.artifact import Artifact
from shiftadd_tvm.errors import UnsupportedError, UsageError
from shiftadd_tvm.runtime import native

Array = np.ndarray
Consume = Callable[[Array], None]  # logits float32 (n, vocabulary), valid during the call


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

    def params(self) -> native.SamplingParams:
        """Return the values as the library takes them."""
        penalty = self.repetition_penalty
        return native.SamplingParams(self.temperature, self.top_k, self.top_p, penalty, self.seed)


class Model:
    """One loaded artifact of any kind: its functions and its mapped parameters."""

    def __init__(
        self, artifact: str | Path | Artifact, *, threads: int | None = None, sequences: int = 1
    ) -> None:
        """Load an artifact, a decoder's with room in the cache for `sequences` full contexts.

        Raises `BadFileError` for a damaged artifact, `UnsupportedError` where it cannot run here.
        """
        self.artifact = artifact if isinstance(artifact, Artifact) else Artifact(artifact)
        self.check_kind(self.artifact)
        native.load_runtime()
        if self.artifact.gpu:
            native.load_cuda()
        params = native.ModelParams(threads=threads or 0, sequences=sequences)
        path = str(self.artifact.path).encode()
        self.handle = native.create("model_load", path, ctypes.byref(params))
        weakref.finalize(self, native.load().shiftadd_model_free, self.handle)
        self._info = native.ModelInfo()
        native.call("model_get_info", self.handle, ctypes.byref(self._info))
        self.threads = self._info.threads

    @staticmethod
    def check_kind(artifact: Artifact) -> None:
        """Raise `UnsupportedError` for a kind of artifact that this class does not run."""

    def call(self, name: str, *arrays: Array) -> list[Array]:
        """Call an exported function with its inputs, in the manifest's order; return its outputs.

        Arrays that begin at a multiple of 64 bytes are not copied.
        """
        specs, count = ctypes.POINTER(native.Tensor)(), ctypes.c_size_t()
        pointers = (ctypes.byref(specs), ctypes.byref(count))
        native.call("function_signature", self.handle, name.encode(), *pointers, None, None)
        given = [np.asarray(array, order="C") for array in arrays]
        inputs = (native.Tensor * len(given))()
        for index, array in enumerate(given):
            shape = (ctypes.c_int64 * array.ndim)(*array.shape)
            dtype = native.DTYPES.index(array.dtype)
            wanted = specs[index].name if index < count.value else b""
            inputs[index] = native.Tensor(wanted, dtype, array.ndim, shape, array.ctypes.data)
        result = native.create("call", self.handle, name.encode(), inputs, len(given))
        return native.Result(result).arrays()

    @contextlib.contextmanager
    def profile(self) -> Iterator[dict[str, list[float]]]:
        """Yield the seconds of each call of each compiled operator, by name, that is made meanwhile."""
        seconds: dict[str, list[float]] = defaultdict(list)

        def add(name: bytes, elapsed: float, _: object) -> None:
            if not name.startswith(b"vm.builtin."):
                seconds[name.decode()].append(elapsed)

        callback = native.PROFILE_CALLBACK(add)
        native.call("model_profile", self.handle, callback, None)
        try:
            yield seconds
        finally:
            native.call("model_profile", self.handle, native.PROFILE_CALLBACK(), None)


class Engine(Model):
    """A loaded decoder: its functions, its mapped parameters, and a pool of cache pages."""

    def __init__(
        self, artifact: str | Path | Artifact, *, threads: int | None = None, sequences: int = 1
    ) -> None:
        """Load an artifact with room in the cache for `sequences` full contexts.

        Raises `BadFileError` for a damaged artifact, `UnsupportedError` where it cannot run here.
        """
        super().__init__(artifact, threads=threads, sequences=sequences)
        info = self._info
        self.context, self.chunk, self.vocabulary = info.context, info.chunk, info.vocabulary
        self.eos = frozenset(info.eos[: info.eos_count])
        self.batches = list(info.batches[: info.batch_count])

    @staticmethod
    def check_kind(artifact: Artifact) -> None:
        """Raise `UnsupportedError` for anything but a decoder."""
        if artifact.manifest["kind"] != "decoder":
            called = "; call it with --inputs" if artifact.manifest["kind"] == "function" else ""
            raise UnsupportedError(
                f"{artifact.path} is a {artifact.manifest['kind']} and not a decoder, it cannot generate "
                f"text{called}."
            )

    def session(self) -> "Session":
        """Return a new, empty sequence."""
        return Session(self, native.create("session_create", self.handle))


class Session:
    """One sequence: its tokens, and the pages that hold their keys and values."""

    def __init__(self, engine: Engine, handle: ctypes.c_void_p) -> None:
        """Own a handle shiftadd_session*."""
        self.engine, self.handle = engine, handle
        weakref.finalize(self, native.load().shiftadd_session_free, handle)

    @property
    def tokens(self) -> list[int]:
        """The tokens that the sequence holds."""
        tokens, count = ctypes.POINTER(ctypes.c_int32)(), ctypes.c_size_t()
        native.call("session_tokens", self.handle, ctypes.byref(tokens), ctypes.byref(count))
        return tokens[: count.value]

    def close(self) -> None:
        """Give the pages back; the session is empty afterwards."""
        native.call("session_reset", self.handle)

    def truncate(self, length: int) -> None:
        """Forget the tokens from `length` on."""
        native.call("session_truncate", self.handle, length)

    def fork(self) -> "Session":
        """Return a second session that goes on from the same tokens."""
        return Session(self.engine, native.create("session_fork", self.handle))

    def cancel(self) -> None:
        """Make the call that runs, or the next one, raise `InterruptedError`; for any thread."""
        native.load().shiftadd_session_cancel(self.handle)

    def logits(self) -> Array:
        """Return the logits float32 (1, vocabulary) of the last token, zero-copy."""
        return native.Result(native.create("logits_result", self.handle)).arrays()[0]

    def prefill(self, tokens: Sequence[int]) -> Array:
        """Append tokens (at least one); return the last one's logits float32 (1, vocabulary)."""
        native.call("prefill", self.handle, _ids(tokens), len(tokens))
        return self.logits()

    def score(self, tokens: Sequence[int], consume: Consume) -> None:
        """Append tokens; hand the logits float32 (n, vocabulary) of all to `consume`, some rows at a
        time."""
        thrown: list[BaseException] = []

        def relay(address: int, rows: int, vocabulary: int, _: object) -> int:
            try:
                consume(native.view(address, (rows, vocabulary), np.dtype(np.float32), None))
            except BaseException as error:  # noqa: BLE001 - none may pass through the library
                thrown.append(error)
            return len(thrown)

        try:
            callback = native.LOGITS_CALLBACK(relay)
            native.call("score", self.handle, _ids(tokens), len(tokens), callback, None)
        except InterruptedError:
            raise (thrown or [InterruptedError("The call was cancelled.")])[0] from None

    def logits_of(self, tokens: Sequence[int]) -> Array:
        """Append tokens; return the logits float32 (n, vocabulary) of all."""
        rows: list[Array] = []
        self.score(tokens, lambda logits: rows.append(logits.copy()))
        return np.concatenate(rows)

    def append(self, token: int) -> None:
        """Append one token; its logits stay where they are computed, for `sample` or `logits`."""
        native.call("decode", self.handle, token)

    def decode(self, token: int) -> Array:
        """Append one token; return its logits float32 (1, vocabulary)."""
        self.append(token)
        return self.logits()

    def sample(self, sampling: Sampling, step: int) -> int:
        """Return the next token by the last one's logits; `step` counts the tokens drawn before."""
        token = ctypes.c_int32()
        params = sampling.params()
        native.call("sample", self.handle, ctypes.byref(params), step, ctypes.byref(token))
        return token.value

    def generate(
        self, prompt: Sequence[int], new_tokens: int, sampling: Sampling | None = None
    ) -> Iterator[int]:
        """Append the prompt, then yield up to `new_tokens` tokens; ends before an end-of-sequence
        token and at the end of the context."""
        sampling = sampling or Sampling()
        self.prefill(prompt)
        length = len(self.tokens)
        for step in range(new_tokens):
            token = self.sample(sampling, step)
            if token in self.engine.eos:
                return
            yield token
            if step + 1 == new_tokens or length + step == self.engine.context:
                return
            self.append(token)


def decode(sessions: Sequence[Session], tokens: Sequence[int]) -> Array:
    """Append one token to each session (as many as the engine has a batch for); return their logits
    float32 (b, vocabulary)."""
    if len(sessions) != len(tokens):
        raise UsageError(
            f"{len(tokens)} tokens for {len(sessions)} sessions; expected one for each."
        )
    handles = (ctypes.c_void_p * len(sessions))(*(session.handle.value for session in sessions))
    native.call("decode_batch", handles, _ids(tokens), len(tokens))
    return np.concatenate([session.logits() for session in sessions])


def _ids(tokens: Sequence[int]) -> ctypes.Array[ctypes.c_int32]:
    for token in tokens:
        if not -(1 << 31) <= token < 1 << 31:
            raise UsageError(f"Token id {token} is no whole number of 32 bits.")
    return (ctypes.c_int32 * len(tokens))(*tokens)
