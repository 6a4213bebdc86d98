"""Our part in the bench of a whole model: an artifact that prefills, decodes and reads memory in turns.

Run as a process of its own by `benchmark/models.py`. Everything is called from one thread, so that the
probe of the memory runs on the very threads that decode. On a GPU a step ends with the next token, which
is chosen there, since the call that starts it does not wait; and the memory probed is the GPU's.
"""

import time
from collections import defaultdict

import numpy as np

from shiftadd_tvm.artifact import Artifact
from shiftadd_tvm.benchmark import memory
from shiftadd_tvm.benchmark.turns import Fields, serve
from shiftadd_tvm.cuda.roof import Roof
from shiftadd_tvm.errors import GateError
from shiftadd_tvm.runtime.engine import Engine, Sampling

READINGS = ("read_memory", "read_memory_ahead")


class Measured:
    """A loaded artifact with a prompt in its cache."""

    def __init__(self, request: Fields) -> None:
        """Load `artifact`, and prefill `prompt_tokens` random tokens."""
        artifact, nbytes = Artifact(request["artifact"]), request["probe_bytes"]
        artifact.check_machine()
        self._roof = Roof(artifact.gpu, nbytes) if artifact.gpu else None
        self._engine = Engine(artifact, threads=request["threads"], sequences=2)
        rng = np.random.default_rng(0)
        self._tokens = rng.integers(0, self._engine.vocabulary, self._engine.context).tolist()
        self._prompt = self._tokens[: request["prompt_tokens"]]
        self._session = self._engine.session()
        logits = self._session.prefill(self._prompt)
        if not np.isfinite(logits).all():
            raise GateError(f"{request['artifact']} computes NaN or Inf; its speed says nothing.")
        self._length = len(self._prompt)
        words = memory.probe_words(0 if self._roof else nbytes)
        self._views = memory.probe_views(words, self._shapes(), request["threads"])

    def _shapes(self) -> dict[str, tuple[int, int]]:
        functions = self._engine.artifact.section("functions")
        shapes = {}
        for name in READINGS:
            signature = functions[name]
            assert isinstance(signature, dict)
            _, runs, _, columns = signature["inputs"][0]["shape"]
            shapes[name] = (runs, columns)
        return shapes

    def probe(self) -> dict[str, float]:
        """Return the bytes a second of each reading."""
        if self._roof:
            return self._roof.rates()
        rates = {}
        for name, view in self._views.items():
            begin = time.perf_counter()
            self._engine.call(name, view)
            rates[name] = view.nbytes / (time.perf_counter() - begin)
        return rates

    def prefill(self) -> float:
        """Return the seconds that the prompt takes, up to its last token's logits."""
        session = self._engine.session()
        begin = time.perf_counter()
        session.prefill(self._prompt)
        elapsed = time.perf_counter() - begin
        session.close()
        return elapsed

    def decode(self, tokens: int) -> list[float]:
        """Return the seconds of each of so many further tokens, without choosing them."""
        times = []
        for _ in range(tokens):
            token = self._tokens[self._length]
            begin = time.perf_counter()
            self._step(token)
            self._length += 1
            times.append(time.perf_counter() - begin)
        return times

    def _step(self, token: int) -> None:
        if self._roof:
            self._session.append(token)
            self._session.sample(Sampling(), 0)
        else:
            self._session.decode(token)

    def profile(self) -> dict[str, list[float]]:
        """Return the seconds of each call of each operator in a step for the last token, by kind."""
        self._session.truncate(self._length - 1)
        by_kind: dict[str, list[float]] = defaultdict(list)
        with self._engine.profile() as seconds:
            self._session.decode(self._tokens[self._length - 1])
        for name, calls in seconds.items():  # TVM numbers the shapes of one operator
            by_kind[name.rstrip("0123456789")] += calls
        return by_kind

    def sample(self) -> float:
        """Return the seconds that it takes to choose a token greedily."""
        begin = time.perf_counter()
        self._session.sample(Sampling(), 0)
        return time.perf_counter() - begin


def _prepare(request: Fields) -> tuple[Fields, dict[str, object]]:
    measured = Measured(request)
    names = ("probe", "prefill", "decode", "profile", "sample")
    return {}, {name: getattr(measured, name) for name in names}


if __name__ == "__main__":
    serve(_prepare)  # type: ignore[arg-type]
