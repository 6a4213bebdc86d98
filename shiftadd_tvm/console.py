"""What the command line shows: plans, progress and summaries on stderr, results on stdout.

On a terminal progress is a live bar; elsewhere it is a plain line now and then. Colours follow
NO_COLOR. `rich` is imported only when there is something to show on a terminal.
"""

import contextlib
import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping

from shiftadd_tvm import interruption

PLAIN_INTERVAL = 5.0  # seconds between the lines of a progress that is not a terminal's

Progress = Callable[[int, int, str], None]  # done, in all, what is being done


class Console:
    """The streams of one command: `json` reserves stdout for one object, `quiet` silences the rest."""

    def __init__(self, *, json: bool = False, quiet: bool = False, verbose: bool = False) -> None:
        """Set up logging too: warnings, or everything when verbose."""
        self.json, self.quiet = json, quiet
        self.live = sys.stderr.isatty() and not quiet
        level = logging.DEBUG if verbose else logging.ERROR if quiet else logging.WARNING
        logger = logging.getLogger("shiftadd_tvm")
        logger.handlers, logger.propagate = [_Handler()], False
        logger.setLevel(level)

    def note(self, text: str) -> None:
        """Print a line of explanation."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def log(self, verb: str, text: str) -> None:
        """Print a line where everything is logged."""
        logging.getLogger("shiftadd_tvm").info("%s: %s", verb, text)

    def table(self, title: str, rows: Mapping[str, object]) -> None:
        """Print a small table of names and values."""
        width = max(len(name) for name in rows)
        self.note(
            "\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in rows.items())])
        )

    def result(self, fields: Mapping[str, object], text: str) -> None:
        """Print the result on stdout: the fields as one line of JSON, or `text` for people."""
        if self.json:
            print(json.dumps(finite(dict(fields)), ensure_ascii=False, allow_nan=False), flush=True)
        elif text:
            print(text, flush=True)

    @contextlib.contextmanager
    def progress(self, title: str) -> Iterator[Progress]:
        """Yield what reports progress, with the time left; it raises what interrupts the work."""
        if self.quiet:
            yield _interruptible(lambda done, total, what: None)
        elif self.live:
            with _bar(title) as report:
                yield _interruptible(report)
        else:
            yield _interruptible(_Lines(title, self.note).report)

    @contextlib.contextmanager
    def stages(self, title: str, count: int) -> Iterator[Callable[[str], None]]:
        """Yield what reports the beginning of each of `count` stages; it raises what interrupts."""
        begin, number = time.monotonic(), 0

        def report(stage: str) -> None:
            nonlocal number
            interruption.check()
            number += 1
            elapsed = clock(time.monotonic() - begin)
            self.note(f"{title}: step {number} of {count}, {stage} ({elapsed})")

        yield report


def _interruptible(report: Progress) -> Progress:
    def checked(done: int, total: int, what: str) -> None:
        interruption.check()
        report(done, total, what)

    return checked


class _Lines:
    """Progress as plain lines: at the beginning, every few seconds, and at the end."""

    def __init__(self, title: str, note: Callable[[str], None]) -> None:
        self.title, self.note = title, note
        self.begin = time.monotonic()
        self.first: int | None = None
        self.printed = -PLAIN_INTERVAL

    def report(self, done: int, total: int, what: str) -> None:
        now = time.monotonic() - self.begin
        if self.first is None:
            self.first = done
        if now - self.printed < PLAIN_INTERVAL and done < total:
            return
        self.printed = now
        left = ""
        if self.first < done < total:
            left = f", {clock(now * (total - done) / (done - self.first))} left"
        self.note(f"{self.title}: {done * 100 // max(total, 1)}% {what}{left}")


@contextlib.contextmanager
def _bar(title: str) -> Iterator[Progress]:
    from rich.console import Console as RichConsole
    from rich.progress import (
        BarColumn,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.progress import (
        Progress as RichProgress,
    )

    columns = (
        TextColumn(title),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("left  {task.fields[what]}"),
    )
    with RichProgress(*columns, console=RichConsole(stderr=True), transient=True) as bar:
        task = bar.add_task(title, what="")

        def report(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, what=what)

        yield report


class _Handler(logging.Handler):
    """Writes to the stderr of the moment, which a live bar replaces."""

    def emit(self, record: logging.LogRecord) -> None:
        print(f"{record.levelname.lower()}: {record.getMessage()}", file=sys.stderr, flush=True)


def finite(value: object) -> object:
    """Return a JSON value with null in the place of NaN and infinities, which JSON lacks."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def size(count: float) -> str:
    """Return a number of bytes for people: "135 MB"."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 999.5:
            return (
                f"{count:.1f} {unit}" if count < 10 and unit != "bytes" else f"{count:.0f} {unit}"
            )
        count /= 1000
    return f"{count:.1f} TB"


def clock(seconds: float) -> str:
    """Return a time as minutes and seconds, with hours where there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
