"""The interactive loop of `chat`: read a line, stream the answer, until the user leaves."""

import contextlib
import importlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from shiftadd_tvm import interruption
from shiftadd_tvm.console import Console
from shiftadd_tvm.errors import UsageError

if TYPE_CHECKING:
    from shiftadd_tvm.runtime.engine import Sampling
    from shiftadd_tvm.runtime.generation import Chat

HELP = "/new forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C ends an answer"
PROMPT = "> "


def hold(
    chat: "Chat",
    console: Console,
    max_new_tokens: int,
    sampling: "Sampling",
    stop: Sequence[str],
) -> None:
    """Talk until /exit, the end of the input, or SIGTERM."""
    interactive = sys.stdin.isatty()
    if interactive:
        console.note(HELP)
        with contextlib.suppress(ImportError):
            importlib.import_module("readline")  # line editing and history
    while True:
        try:
            line = input(PROMPT if interactive else "").strip()
        except EOFError:
            if interactive:
                print()
            return
        except KeyboardInterrupt as error:
            if isinstance(error, interruption.Terminated) or not interactive:
                raise
            interruption.forget()
            console.note(f"\n{HELP}")
            continue
        if line == "/exit":
            return
        if line == "/new":
            chat.reset()
            console.note("a new conversation")
        elif line.startswith("/"):
            console.note(f"{line} is no command: {HELP}")
        elif line:
            _answer(chat, console, line, max_new_tokens, sampling, stop)


def _answer(
    chat: "Chat",
    console: Console,
    line: str,
    max_new_tokens: int,
    sampling: "Sampling",
    stop: Sequence[str],
) -> None:
    try:
        generation = chat.reply(line, max_new_tokens, sampling, stop)
    except UsageError as error:
        console.note(f"{error} /new begins again.")
        return
    try:
        for piece in generation:
            print(piece, end="", flush=True)
    except KeyboardInterrupt as error:
        if isinstance(error, interruption.Terminated) or not sys.stdin.isatty():
            raise
        interruption.forget()
    print(flush=True)
    chat.keep(generation)
    if generation.finish_reason == "context":
        console.note("The context is full; /new begins again.")
