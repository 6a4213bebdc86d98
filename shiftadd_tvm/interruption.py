"""Ctrl-C, SIGTERM and a reader that went away: they end a verb with a word on what is left behind."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


class Interrupted(Exception):
    """A verb was interrupted; the text says what is left behind."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: like Ctrl-C, but a chat ends too."""


class _Signals:
    """Remembers that a signal came: a library may have turned the exception into its own."""

    received = False


def watch() -> None:
    """Turn SIGINT and SIGTERM into exceptions."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _on_signal)


def ignore() -> None:
    """Let nothing interrupt the process any more: its work is done, only Python has to end."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def check() -> None:
    """Raise again what came before: foreign code between it and us may have swallowed it."""
    if _Signals.received:
        raise KeyboardInterrupt


def forget() -> None:
    """Take up the work again: the interruption was dealt with."""
    _Signals.received = False


def _on_signal(number: int, frame: FrameType | None) -> None:
    _Signals.received = True
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


@contextlib.contextmanager
def leaving(note: str) -> Iterator[None]:
    """Raise `Interrupted` with `note` when the body is interrupted."""
    forget()
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(note) from None
    except BrokenPipeError:
        raise Interrupted(f"nobody reads the output any more; {note}") from None
    except Exception:
        if _Signals.received:
            raise Interrupted(note) from None
        raise
