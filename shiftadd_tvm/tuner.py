"""Tune a target: run the search in a child process, and tell how it gets on.

The child (`shiftadd_tvm.tuning.child`) gets one request and answers by lines of JSON: a progress, a
result or an error each. A crash, of TVM or of the search itself, costs the child: every finished
batch is on disk, and the same command goes on after it.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from shiftadd_tvm import errors, timing_model
from shiftadd_tvm.backend import Backend
from shiftadd_tvm.cuda import toolkit
from shiftadd_tvm.errors import GateError, ShiftAddError, UnsupportedError, UsageError

log = logging.getLogger(__name__)

DEFAULT_TRIALS = 64
META = "meta.json"  # by which a log is known
STAGES = ("build", "measure", "commit")
CANDIDATES = "candidates.pyz"  # by which a folder of candidates is known

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class BoardAddress:
    """Where a tracker of TVM's RPC answers, and the key of the boards that are meant."""

    host: str
    port: int
    key: str

    @classmethod
    def parse(cls, text: str) -> "BoardAddress":
        """Return the address that HOST:PORT:KEY says; raise `UsageError` for anything else."""
        host, port, key = (text.rsplit(":", 2) + ["", ""])[:3]
        if not (host and key and port.isdecimal() and 0 < int(port) < 65536):
            raise UsageError(f"--rpc is {text!r}, expected HOST:PORT:KEY of a tracker.")
        return cls(host, int(port), key)


@dataclass(frozen=True)
class TuneRequest:
    """What to tune, by what budget, and where the log goes."""

    preset: str
    source: str | None = None  # a packed model; None: the shapes that we ship logs for
    synthetic: str | None = None  # or those of one published model
    activations: str = "int16"  # the format of a packed model's look-ups
    op: str | None = None  # None: every operator that has knobs
    trials: int = DEFAULT_TRIALS  # of each task, those of earlier runs included
    minutes: float | None = None  # of all tasks together
    threads: int = 1
    output: str | None = None  # None: the user's cache
    rpc: str | None = None  # HOST:PORT:KEY of boards that measure
    stage: str | None = None  # one of STAGES; of the last two `source` is the folder of the first

    @property
    def command(self) -> str:
        """The command line, without what belongs to one machine."""
        words = ["tune", "--target", self.preset, "--trials", str(self.trials)]
        words += [] if self.minutes is None else ["--minutes", f"{self.minutes:g}"]
        words += [] if self.op is None else ["--op", self.op]
        words += [] if self.synthetic is None else ["--synthetic", self.synthetic]
        if self.stage is not None:
            return " ".join([*words, "--stage", self.stage])
        return " ".join([*words, "--threads", str(self.threads)])


@dataclass(frozen=True)
class TuneReport:
    """The result as `--json` prints it; times are microseconds of one call, compared in turns."""

    target: str
    output: str
    measured: str  # "local", "rpc", "two-stage", "static-model" where nothing ran, or "not yet"
    kept: bool  # False: boards were emulated, and no log was written
    tasks: list[dict[str, Any]]
    left: list[str]  # tasks that the time did not suffice for
    lookup_rows: int | None
    seconds: float


def check(backend: Backend, request: TuneRequest) -> None:
    """Raise `UnsupportedError` where candidates get no times, `UsageError` for no budget."""
    if request.trials < 1:
        raise UsageError(f"--trials is {request.trials}, expected at least 1.")
    if request.minutes is not None and not request.minutes > 0:
        raise UsageError(f"--minutes is {request.minutes:g}, expected more than 0.")
    if backend.device or request.stage:
        _check_device(backend, request)
        return
    if request.rpc is not None:
        BoardAddress.parse(request.rpc)
    elif not backend.runs_here():
        if not backend.model:
            raise UnsupportedError(
                f"Candidates for {backend.name} cannot be measured on this machine, which lacks "
                f"{', '.join(backend.missing_features())}, and no model of one processor stands for "
                "them; tune on a machine that has it, and give the log to compile by --tuning-log."
            )
        timing_model.find()


def _check_device(backend: Backend, request: TuneRequest) -> None:
    """Check a request for a GPU."""
    if request.stage not in (None, *STAGES):
        raise UsageError(f"--stage is {request.stage!r}, expected one of {', '.join(STAGES)}.")
    if request.stage in STAGES[1:]:
        if request.source is None:
            raise UsageError(f"--stage {request.stage} needs the folder that --stage build wrote.")
        if request.stage == "measure" and request.output is not None:
            raise UsageError("--stage measure writes into the folder of candidates; leave -o out.")
        return
    if not backend.device:
        raise UsageError(f"--stage is for GPUs, and {backend.name} is none; leave it out.")
    if request.rpc is not None:
        raise UsageError("--rpc is for processors; tune a GPU elsewhere by --stage build.")
    toolkit.find()
    if request.stage is None and not backend.runs_here():
        raise UnsupportedError(
            f"Candidates for {backend.name} cannot be measured on this machine, which lacks "
            f"{', '.join(backend.missing_features())}; build them here by --stage build, and measure "
            "them where the GPU is."
        )


def tune(request: TuneRequest, progress: Progress = lambda done, total, what: None) -> TuneReport:
    """Carry out a request; raises what the child raised, `GateError` when it died."""
    command = [sys.executable, "-m", "shiftadd_tvm.tuning.child", json.dumps(asdict(request))]
    # TVM's pool is set up by the environment, as the runtime does it (`runtime/library.py`)
    threads = {"TVM_NUM_THREADS": str(request.threads), "TVM_BIND_THREADS": "0"}
    with tempfile.TemporaryFile("w+") as said:
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=said, text=True, env={**os.environ, **threads}
        )
        try:
            fields = _listen(child, progress)
            status = child.wait()
        finally:
            child.kill()  # interrupted: what it was measuring is lost
            child.wait()
        if fields is None:
            said.seek(0)
            raise _died(status, said.read())
    return TuneReport(**fields)


def _listen(child: "subprocess.Popen[str]", progress: Progress) -> dict[str, Any] | None:
    """Pass on what the child says; return its result, None if it has none."""
    result = None
    assert child.stdout is not None
    for line in child.stdout:
        said = json.loads(line)
        if "error" in said:
            kind, message = said["error"]
            raise _known_errors()[kind](message)
        if "log" in said:
            log.log(*said["log"])
        if "progress" in said:
            progress(*said["progress"])
        result = said.get("result", result)
    return result


def _known_errors() -> dict[str, type[ShiftAddError]]:
    found = vars(errors).values()
    return {e.__name__: e for e in found if isinstance(e, type) and issubclass(e, ShiftAddError)}


def _died(status: int, said: str) -> GateError:
    how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    reason = (said.strip().splitlines() or ["no output"])[-1]
    return GateError(
        f"The tuning process died ({how}: {reason}); finished batches are kept, and the same command "
        "goes on after them. Please report it if that happens again."
    )
