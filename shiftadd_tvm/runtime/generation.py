"""Generate text with an artifact: the engine and the tokenizer together, for one text or a chat.

A chat keeps its conversation in the cache: each turn renders the whole conversation by the model's own
template, and prefills only the tokens after those that the cache holds already.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from shiftadd_tvm.artifact import Artifact
from shiftadd_tvm.errors import BadFileError, UsageError
from shiftadd_tvm.runtime.chat_template import Message
from shiftadd_tvm.runtime.engine import Engine, Sampling, Session
from shiftadd_tvm.runtime.text import StopFilter, Tokenizer

DEFAULT_TOKENS = 128


class TextModel:
    """A loaded artifact with its tokenizer."""

    def __init__(self, path: str | Path, *, threads: int | None = None) -> None:
        """Load the artifact in `path`; raises `BadFileError` or `UnsupportedError`."""
        artifact = Artifact(path)
        Engine.check_kind(artifact)  # before its tokenizer, which no other kind has
        self.tokenizer = Tokenizer(artifact.tokenizer_file, artifact.path)
        self.engine = Engine(artifact, threads=threads)

    def encode(self, text: str, *, bos: bool = True) -> list[int]:
        """Return token ids of `text`; raises where the tokenizer knows tokens that the model lacks."""
        ids = self.tokenizer.encode(text, bos=bos)
        if ids and max(ids) >= self.engine.vocabulary:
            raise BadFileError(
                f"{self.engine.artifact.path}: its tokenizer gives token id {max(ids)}, the model's "
                f"vocabulary has {self.engine.vocabulary}; compile it with the tokenizer of the same "
                "checkpoint."
            )
        return ids

    def generate(
        self,
        prompt: str,
        max_new_tokens: int = DEFAULT_TOKENS,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
    ) -> "Generation":
        """Return the continuation of `prompt`: iterate over it to get text as it is generated."""
        ids = self.encode(prompt)
        return Generation(self, self.engine.session(), ids, max_new_tokens, sampling, stop)

    def chat(self, system: str | None = None) -> "Chat":
        """Return a new, empty conversation."""
        return Chat(self, system)


class Generation:
    """One text being generated after the tokens `new` in a session, and what it cost."""

    def __init__(
        self,
        model: TextModel,
        session: Session,
        new: Sequence[int],
        max_new_tokens: int,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
    ) -> None:
        """Check the request; nothing runs before the first piece is asked for."""
        context, held = model.engine.context, len(session.tokens)
        if held + len(new) >= context:
            raise UsageError(
                f"The prompt has {held + len(new)} tokens, the artifact's context is {context} and "
                "one more is needed for the answer; shorten it, or compile with a larger --context."
            )
        if max_new_tokens < 1:
            raise UsageError(f"--max-new-tokens is {max_new_tokens}, expected 1 or more.")
        self._model, self._session, self._new = model, session, list(new)
        self._limit, self._sampling = max_new_tokens, sampling or Sampling()
        self._filter = StopFilter(stop)
        self.text = ""
        self.tokens: list[int] = []
        self.finish_reason = "interrupted"
        self.prefill_seconds = self.decode_seconds = 0.0

    def __iter__(self) -> Iterator[str]:
        """Yield pieces of text; stops at an end-of-sequence token, a stop string or the limit."""
        stream = self._model.tokenizer.stream(self._session.tokens + self._new)
        for token in self._draw():
            self.tokens.append(token)
            yield from self._show(stream.push(token))
            if self._filter.stopped:
                self.finish_reason = "stop"
                return
        yield from self._show(stream.finish())
        if not self._filter.stopped:
            yield from self._show(self._filter.finish(), filtered=False)

    def _show(self, text: str, *, filtered: bool = True) -> Iterator[str]:
        shown = self._filter.push(text) if filtered else text
        self.text += shown
        if shown:
            yield shown

    def _draw(self) -> Iterator[int]:
        """Yield tokens; times the work and not what the caller does between them."""
        session, engine = self._session, self._model.engine
        begin = time.perf_counter()
        session.prefill(self._new)
        token = session.sample(self._sampling, 0)
        self.prefill_seconds = time.perf_counter() - begin
        length = len(session.tokens)
        for step in range(1, self._limit + 1):
            if token in engine.eos:
                self.finish_reason = "eos"
                return
            yield token
            if step == self._limit or length + step - 1 == engine.context:
                self.finish_reason = "length" if step == self._limit else "context"
                return
            begin = time.perf_counter()
            session.append(token)
            token = session.sample(self._sampling, step)
            self.decode_seconds += time.perf_counter() - begin

    @property
    def prefill_tokens_per_second(self) -> float:
        """Prompt tokens per second, the first token's choice included."""
        return len(self._new) / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        """Tokens after the first per second."""
        count = len(self.tokens) - 1 + (self.finish_reason == "eos")
        return count / self.decode_seconds if self.decode_seconds else 0.0

    def to_dict(self) -> dict[str, object]:
        """Return the result under the field names of the command line's JSON."""
        return {
            "text": self.text,
            "tokens": len(self.tokens),
            "token_ids": self.tokens,
            "prompt_tokens": len(self._new),
            "finish_reason": self.finish_reason,
            "prefill_tokens_per_second": self.prefill_tokens_per_second,
            "decode_tokens_per_second": self.decode_tokens_per_second,
        }


class Chat:
    """A conversation in one session; `reply` continues it."""

    def __init__(self, model: TextModel, system: str | None = None) -> None:
        """Start empty, or with a system message; raises where the model has no chat template."""
        self._model, self._session = model, model.engine.session()
        self._system = [{"role": "system", "content": system}] if system else []
        self.messages: list[Message] = list(self._system)
        model.tokenizer.render([*self.messages, {"role": "user", "content": ""}])

    def reset(self) -> None:
        """Forget the conversation, not the system message."""
        self.messages = list(self._system)
        self._session.close()

    def reply(
        self,
        text: str,
        max_new_tokens: int = DEFAULT_TOKENS,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
    ) -> "Generation":
        """Return the answer to `text`; iterate over it, then hand it to `keep`."""
        messages = [*self.messages, {"role": "user", "content": text}]
        ids = self._model.encode(self._model.tokenizer.render(messages), bos=False)
        held = self._session.tokens
        # at least one token is new, since its logits choose the next one
        limit = min(len(held), len(ids) - 1)
        common = next((i for i in range(limit) if held[i] != ids[i]), limit)
        self._session.truncate(common)
        generation = Generation(
            self._model, self._session, ids[common:], max_new_tokens, sampling, stop
        )
        self.messages = messages
        return generation

    def keep(self, generation: Generation) -> None:
        """Add the answer, whole or as far as it came, to the conversation."""
        self.messages.append({"role": "assistant", "content": generation.text})
