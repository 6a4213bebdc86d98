"""Text in and out of a model: its tokenizer, decoding as tokens come, stop strings, its chat template.

Everything comes from the model's own files, read with `tokenizers` and a sandboxed `jinja2`; nothing
here knows transformers.

    tokenizer.json          the tokenizer
    tokenizer_config.json   add_bos_token, bos_token, eos_token (all optional), and what
                            `chat_template` reads
"""

from collections.abc import Sequence
from typing import Any

from shiftadd_tvm.errors import BadFileError, UnsupportedError
from shiftadd_tvm.runtime.chat_template import Message, find_template
from shiftadd_tvm.tokenizer_file import (
    TOKENIZER,
    Read,
    first_token,
    open_tokenizer,
    read_config,
    special,
)

UNFINISHED = "\ufffd"  # what the bytes of an unfinished character decode to
CONTEXT = 16  # tokens before a text that decide how its first token is written (leading spaces)


class Tokenizer:
    """The tokenizer of a model, whose files `read` returns by name (None: there is no such file)."""

    def __init__(self, read: Read, origin: object) -> None:
        """Open the tokenizer; `origin` names the model in errors (`BadFileError`)."""
        self.origin = origin
        self._tokenizer = _open(read(TOKENIZER), origin)
        self.config = read_config(read, origin)
        self.bos = first_token(self._tokenizer, self.config)
        self._template = find_template(read, origin)

    def special(self, name: str) -> str:
        """Return the text of a special token, such as "eos_token"; empty where there is none."""
        return special(self.config, name)

    def token(self, text: str) -> int | None:
        """Return the id of the token that is written `text`, if there is one."""
        found: int | None = self._tokenizer.token_to_id(text)
        return found

    @property
    def size(self) -> int:
        """The number of tokens, added ones included."""
        return int(self._tokenizer.get_vocab_size())

    def encode(self, text: str, *, bos: bool = True) -> list[int]:
        """Return the token ids of `text`, after BOS where the model expects one and `bos` is true."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return [self.bos, *ids] if bos and self.bos is not None else ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens left out."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def stream(self, prompt: Sequence[int] = ()) -> "TextStream":
        """Return what decodes the tokens that follow `prompt`."""
        return TextStream(self._tokenizer, prompt)

    @property
    def has_template(self) -> bool:
        """Tell whether the model has a chat template."""
        return self._template is not None

    def render(self, messages: Sequence[Message]) -> str:
        """Return a conversation as the model wants it, open for the assistant's reply."""
        if self._template is None:
            raise UnsupportedError(
                f"{self.origin} has no chat template, so it is not made for conversations; "
                "use shiftadd-tvm run, which continues a text."
            )
        return self._template.render(messages)


class TextStream:
    """Decodes one token after the other; holds back the bytes of an unfinished character.

    A token's text is what it adds to the text of the tokens before it, since some decoders write a token
    differently at the beginning. libshiftadd's stream.cpp does the same.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int]) -> None:
        """Begin after the tokens `prompt`, which are not shown."""
        self._tokenizer = tokenizer
        self._before = list(prompt[-CONTEXT:])
        self._ids: list[int] = []
        self._shown = 0
        self._window: list[int] = []  # the tokens that are decoded together
        self._settled = 0  # tokens at its front that _prefix is the text of
        self._prefix = ""
        for token in self._before:
            self._step(token)

    def push(self, token: int) -> str:
        """Return the text that `token` completes; it may be empty."""
        self._ids.append(token)
        text = self._step(token)
        self._shown += len(text)
        return text

    def _step(self, token: int) -> str:
        if not self._prefix and self._window:
            text = self._decode(self._window)
            if not text.endswith(UNFINISHED):
                self._prefix, self._settled = text, len(self._window)
        self._window.append(token)
        text = self._decode(self._window)
        if len(text) <= len(self._prefix) or text.endswith(UNFINISHED):
            return ""
        added = text[len(self._prefix) :]
        self._window = self._window[self._settled :]
        self._settled = len(self._window)
        self._prefix = self._decode(self._window)
        return added

    def finish(self) -> str:
        """Return the rest: what an unfinished character decodes to."""
        before = self._decode(self._before)
        return self._decode(self._before + self._ids)[len(before) + self._shown :]

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text


class StopFilter:
    """Ends a text before the first of some strings; holds back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        """Watch for the non-empty strings among `stops`."""
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Return what may be shown after `text`; `stopped` tells whether a stop was found."""
        self._held += text
        found = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            shown, self._held = self._held[: min(found)], ""
            return shown
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        shown, self._held = (
            self._held[: len(self._held) - keep],
            self._held[len(self._held) - keep :],
        )
        return shown

    def finish(self) -> str:
        """Return what was held back: no stop string followed."""
        shown, self._held = self._held, ""
        return shown


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of `text` are the beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


def _open(content: bytes | None, origin: object) -> Any:
    if content is None:
        raise BadFileError(
            f"{origin} has no {TOKENIZER}; put the model's own beside its weights "
            "(transformers' save_pretrained writes one) and make it again."
        )
    return open_tokenizer(content, origin)
