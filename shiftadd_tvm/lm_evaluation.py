"""Let lm-evaluation-harness score an artifact, by its own kernels (`pip install 'shiftadd-tvm[eval]'`).

    python -m shiftadd_tvm.lm_evaluation --model shiftadd --model_args artifact=app --tasks arc_easy

is the harness's own command (`lm_eval`) that knows the model "shiftadd"; in Python, give
`ShiftAddLM("app")` to `lm_eval.simple_evaluate(model=...)`. Importing this module registers the model:
the harness looks for no plug-ins.

A text begins with BOS where the model's tokenizer adds one, and is cut on the left where it is longer
than the artifact's context. Contexts that follow each other share what the cache holds of their
beginning, such as the choices of one question.
"""

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from shiftadd_tvm.errors import UsageError
from shiftadd_tvm.evaluation import log_probabilities
from shiftadd_tvm.runtime.engine import Sampling
from shiftadd_tvm.runtime.generation import Generation, TextModel

DEFAULT_NEW_TOKENS = 256

Scored = tuple[tuple[str, str], list[int], list[int]]  # texts, context ids, continuation ids


@register_model("shiftadd")
class ShiftAddLM(TemplateLM):
    """An artifact as a language model of the harness."""

    def __init__(self, artifact: str | Path, threads: int | None = None, **ignored: object) -> None:
        """Load the artifact; `ignored` is what the harness gives every model (batch size, device)."""
        super().__init__()
        self._model = TextModel(artifact, threads=threads)
        self._engine = self._model.engine
        self._session = self._engine.session()

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        tokenizer = self._model.tokenizer
        named = tokenizer.token(tokenizer.special("eos_token"))
        found = named if named is not None else min(self._engine.eos, default=None)
        if found is None:
            raise UsageError(
                f"{tokenizer.origin} names no token that ends a text (eos_token), which the harness "
                "needs; give it a tokenizer_config.json that does and compile it again."
            )
        return found

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without context: BOS, or else the one that ends texts."""
        bos = self._model.tokenizer.bos
        return self.eot_token_id if bos is None else bos

    @property
    def max_length(self) -> int:
        """The artifact's context, in tokens."""
        return self._engine.context

    @property
    def tokenizer_name(self) -> str:
        """The name under which the harness keeps what it has tokenized."""
        return str(self._engine.artifact.path)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **rest: object
    ) -> list[int]:
        """Return token ids, after BOS where the model expects one and it is not there yet."""
        ids = self._model.encode(string, bos=False)
        bos = self._model.tokenizer.bos
        if add_special_tokens is False or bos is None or ids[:1] == [bos]:
            return ids
        return [bos, *ids]

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return a conversation by the model's own template, open for the assistant's answer."""
        return self._model.tokenizer.render(chat_history)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return nothing: `apply_chat_template` has the model's own, and there is no other."""
        return ""

    def _loglikelihood_tokens(
        self, requests: Sequence[Scored], disable_tqdm: bool = False, **rest: object
    ) -> list[tuple[float, bool]]:
        found = []
        for texts, context, continuation in tqdm(requests, disable=disable_tqdm, desc="scoring"):
            found.append(self._score(context, continuation))
            self.cache_hook.add_partial("loglikelihood", texts, found[-1])
        return found

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of each whole text, in windows of the artifact's context."""
        found = []
        for request in tqdm(requests, disable=disable_tqdm, desc="scoring texts"):
            (text,) = request.args
            ids = self.tok_encode(text, add_special_tokens=False)
            windows = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1)
            scores = [self._score(*make_disjoint_window(window))[0] for window in windows]
            found.append(sum(scores))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, found[-1])
        return found

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Return the continuation of each context, up to a stop text, an end or a limit of tokens."""
        found = []
        for request in tqdm(requests, disable=disable_tqdm, desc="generating"):
            context, asked = request.args
            found.append(self._generate(context, normalize_gen_kwargs(asked, DEFAULT_NEW_TOKENS)))
            self.cache_hook.add_partial("generate_until", request.args, found[-1])
        return found

    def _generate(self, context: str, asked: Any) -> str:
        limit = asked["max_gen_toks"]
        room = self.max_length - limit
        if room < 1:
            raise UsageError(
                f"max_gen_toks is {limit}, the artifact's context is {self.max_length}; ask for "
                "fewer, or compile with a larger --context."
            )
        sampling = Sampling(
            temperature=asked["temperature"] if asked["do_sample"] else 0.0,
            top_k=int(asked.get("top_k") or 0),
            top_p=float(asked.get("top_p") or 1.0),
        )
        prompt = self.tok_encode(context)[-room:] or [self.prefix_token_id]
        self._session.close()
        generation = Generation(self._model, self._session, prompt, limit, sampling, asked["until"])
        return "".join(generation)

    def _score(self, context: list[int], continuation: list[int]) -> tuple[float, bool]:
        """Return the log-probability of `continuation`, and whether greedy choice would write it."""
        count = len(continuation)
        if count > self.max_length:
            raise UsageError(
                f"A continuation has {count} tokens, the artifact's context is {self.max_length}; "
                "compile with a larger --context."
            )
        inputs = [*context, *continuation][-self.max_length - 1 : -1]
        self._hold(inputs[: len(inputs) - count])
        total, done, greedy = 0.0, 0, True

        def consume(logits: np.ndarray) -> None:
            nonlocal total, done, greedy
            following = np.array(continuation[done : done + len(logits)])
            total += float(log_probabilities(logits, following).sum())
            greedy = greedy and bool((logits.argmax(axis=1) == following).all())
            done += len(logits)

        self._session.score(inputs[len(inputs) - count :], consume)
        return total, greedy

    def _hold(self, tokens: list[int]) -> None:
        """Have the session hold `tokens`, of which it may hold the beginning already."""
        held = self._session.tokens
        pairs = zip(held, tokens, strict=False)
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        self._session.truncate(same)
        if tokens[same:]:
            self._session.prefill(tokens[same:])


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
