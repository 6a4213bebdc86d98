"""Run the command line: in a child process, in this one, or interrupted at a chosen moment."""

import contextlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shiftadd_tvm.cli import run_command

COMMAND = [sys.executable, "-m", "shiftadd_tvm"]


def finished(
    words: Sequence[object], stdin: str = "", **options: Any
) -> subprocess.CompletedProcess[str]:
    """Return a finished program with what it printed as it is: text mode would make \\r a \\n.

    A tiny model writes any character, so what it prints is compared byte for byte.
    """
    child = subprocess.run([*map(str, words)], input=stdin.encode(), capture_output=True, **options)
    said = child.stdout.decode(), child.stderr.decode()
    return subprocess.CompletedProcess(child.args, child.returncode, *said)


def call(
    *arguments: object, cwd: Path | None = None, stdin: str = "", file_limit: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Return the finished command; `file_limit` ends every file at so many bytes, as a full disk."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))  # type: ignore[arg-type]

    more = {"preexec_fn": limit} if file_limit else {}
    return finished([*COMMAND, *arguments], stdin, cwd=cwd, timeout=300, **more)


def call_here(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Return the finished command, run in this process: a second faster, for what ends early."""
    words = [str(argument) for argument in arguments]
    output, errors = io.StringIO(), io.StringIO()
    streams = contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors)
    with contextlib.chdir(cwd), streams[0], streams[1]:
        code = run_command(words)
    return subprocess.CompletedProcess(words, code, output.getvalue(), errors.getvalue())


def result(*arguments: object, cwd: Path | None = None) -> dict[str, Any]:
    """Return the JSON object that a command prints last."""
    child = call(*arguments, "--json", cwd=cwd)
    assert child.returncode == 0, child.stderr
    found = json.loads(child.stdout.splitlines()[-1])
    assert isinstance(found, dict)
    return found


def fails(child: subprocess.CompletedProcess[str], code: int, *words: str) -> str:
    """Check that a command ended with `code` and one sentence that has all `words`; return it."""
    assert child.returncode == code, (child.returncode, child.stderr)
    assert "Traceback" not in child.stderr
    lines = [line for line in child.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and child.stderr.splitlines()[-1] == lines[0], child.stderr
    for word in words:
        assert word in lines[0], lines[0]
    return lines[0]


def interrupt(
    arguments: Sequence[object],
    when: str | Path,
    number: int = signal.SIGINT,
    cwd: Path | None = None,
    delay: float = 0.05,
) -> tuple[int, str]:
    """Start a command, send it a signal `delay` seconds after its output holds the text `when`, or
    the file `when` is there; return code and output."""
    child = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        cwd=cwd,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert child.stdout is not None
    output = b""
    while isinstance(when, Path) and not when.exists():
        assert child.poll() is None, f"ended before {when} was there"
        time.sleep(0.01)
    while isinstance(when, str) and when.encode() not in output:
        piece = os.read(child.stdout.fileno(), 65536)
        assert piece, f"ended before {when!r}: {output.decode()}"
        output += piece
    time.sleep(delay)
    os.killpg(child.pid, number)  # as a terminal does: the command and its children
    rest, _ = child.communicate(timeout=60)
    return child.returncode, (output + rest).decode("utf-8", "replace")
