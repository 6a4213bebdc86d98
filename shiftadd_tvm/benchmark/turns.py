"""Contenders as child processes that play in turns: one request, one answer, nobody else running.

The parent writes one JSON object a line and waits for the answer; the first one is what the contender
is to prepare. A contender's module calls `serve` with a function that prepares and returns its actions.
What libraries print goes to stderr, and is shown only where the process died of it.
"""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

from shiftadd_tvm import errors
from shiftadd_tvm.errors import ShiftAddError

Fields = dict[str, Any]
Action = Callable[..., object]
Prepare = Callable[[Fields], tuple[Fields, Mapping[str, Action]]]

LAST_WORDS = 300  # characters of a dead contender's stderr
LEAVE_SECONDS = 5
# Peers take their memory from malloc; ours asks for huge pages itself.
ENVIRONMENT = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "TOKENIZERS_PARALLELISM": "false"}


class ContenderError(Exception):
    """A contender cannot take part or died; the text says why."""


class Contender:
    """One contender, seen from the parent. Use it as a context manager."""

    def __init__(self, module: str, request: Fields) -> None:
        """Start `python -m <module>` and have it prepare `request`; `info` is its answer.

        Raises `ContenderError`, or the contender's own `ShiftAddError`.
        """
        self._stderr = tempfile.TemporaryFile()
        threads = str(request["threads"])
        self._child = subprocess.Popen(
            [sys.executable, "-m", f"shiftadd_tvm.{module}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env={**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": threads},
            text=True,
        )
        try:
            self.info: Fields = self._exchange(request)
        except BaseException:
            self.close()
            raise

    def play(self, action: str, **arguments: object) -> Any:
        """Have the contender do one thing, and return what it measured."""
        return self._exchange({"action": action, **arguments})

    def _exchange(self, request: Fields) -> Any:
        assert self._child.stdin is not None and self._child.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it is dead: no answer comes
            self._child.stdin.write(json.dumps(request) + "\n")
            self._child.stdin.flush()
        line = self._child.stdout.readline()
        if not line:
            raise ContenderError(self._last_words())
        answer = json.loads(line)
        if "error" in answer:
            kind = getattr(errors, answer.get("kind", ""), ContenderError)
            raise kind(answer["error"])
        return answer["result"]

    def _last_words(self) -> str:
        status = self._child.wait()
        self._stderr.seek(0)
        lines = self._stderr.read().decode("utf-8", "replace").strip().splitlines()
        return f"it died (exit status {status}): {(lines or ['no word'])[-1][:LAST_WORDS]}"

    def close(self) -> None:
        """End the process."""
        assert self._child.stdin is not None and self._child.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.close()
        try:
            self._child.wait(LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._child.stdout.close()
        self._stderr.close()

    def __enter__(self) -> "Contender":
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self.close()


def serve(prepare: Prepare) -> None:
    """Play as a child: `prepare` gets the first request, returns info and the actions by name."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its children itself
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    actions: Mapping[str, Action] | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if actions is None:
                result, actions = prepare(request)
            else:
                result = actions[request.pop("action")](**request)  # type: ignore[assignment]
            answer: Fields = {"result": result}
        except (ShiftAddError, ContenderError) as error:
            answer = {"error": str(error), "kind": type(error).__name__}
        print(json.dumps(answer), file=answers, flush=True)
    answers.close()


def installed(module: str) -> bool:
    """Tell whether a library can be imported, without importing it."""
    return importlib.util.find_spec(module) is not None
