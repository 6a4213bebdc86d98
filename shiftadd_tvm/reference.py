"""The reference: a transformers model in float32, run block by block in bounded memory.

The model is built without weights (meta device); those of a block exist only while it runs, read
from a `WeightSource`: a source checkpoint, or a packed model seen through `DequantizedModel`. All
rows pass through a block before the next one is read, so weights are streamed once per batch.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError

from shiftadd_tvm import evaluation, families
from shiftadd_tvm.errors import BadFileError

Array = np.ndarray
Arguments = dict[str, object]

_BLOCK_TOKENS = 4096  # that pass through a block together: bounds the activations
_HEAD_ROWS = 256  # whose logits exist together
_BATCH_TOKENS = 1 << 16  # whose hidden states exist together: weights are read once for them
_READ = 1 << 22  # weights that are read together


class _EnteredError(Exception):
    """The first block was reached."""


class WeightSource(Protocol):
    """What the reference reads: a checkpoint, or anything that looks like one."""

    @property
    def config(self) -> families.Config:
        """The Hugging Face config."""

    def read_rows(self, name: str, start: int, stop: int) -> Array:
        """Return rows [start, stop) of a tensor, float32."""


class ReferenceModel:
    """A decoder whose weights are read as they are needed, or kept once they are read."""

    def __init__(self, source: WeightSource, *, keep: bool = False) -> None:
        """Build the empty model; `keep` holds every weight in memory from its first use on."""
        self._source, self._keep = source, keep
        self._decoder = families.read_config(source.config)
        self._shapes = self._decoder.tensor_shapes()
        self._kept_head: torch.Tensor | None = None
        self.model = _empty_model(source.config)
        norm = self._decoder.final_norm
        self.load(norm)
        for path in self._decoder.blocks():
            block = self.model.get_submodule(path)
            block.forward = functools.partial(self._run_block, path, block.forward)

    @property
    def vocabulary(self) -> int:
        """The number of tokens."""
        return self._decoder.vocabulary

    @torch.inference_mode()
    def hidden(self, ids: Array, **arguments: object) -> torch.Tensor:
        """Return the hidden states after the last norm, float32 (B, T, hidden), of ids (B, T)."""
        ids = np.asarray(ids)
        arguments = {"use_cache": False, **arguments}
        output = self.model.base_model(inputs_embeds=self._embed(ids), **arguments)
        states: torch.Tensor = output.last_hidden_state
        return states

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits, float32 (n, vocabulary), of a few hundred hidden rows (n, hidden)."""
        return hidden @ self.head().T

    @torch.inference_mode()
    def score(self, windows: Array) -> Iterator[Array]:
        """Yield the log-probabilities of the next tokens, float64 (T - 1,), of each row of ids
        (B, T); the weights are read once for many windows."""
        step = max(1, _BATCH_TOKENS // windows.shape[1])
        for start in range(0, len(windows), step):
            batch = windows[start : start + step]
            states = self.hidden(batch)
            head = self.head()
            for state, ids in zip(states, batch, strict=True):
                yield _score_window(state, ids, head)

    @torch.inference_mode()
    def greedy(self, ids: Array, count: int) -> tuple[Array, Array]:
        """Return `count` greedy tokens int64 (B, count) after prompts (B, T), and for each by how
        much its logit exceeds the second best, float32 (B, count)."""
        cache = transformers.DynamicCache()
        tokens, margins = [], []
        for _ in range(count):
            states = self.hidden(ids, use_cache=True, past_key_values=cache)
            best = self.logits(states[:, -1]).topk(2)
            ids = best.indices[:, :1].numpy()
            tokens.append(ids[:, 0])
            margins.append((best.values[:, 0] - best.values[:, 1]).numpy())
        return np.stack(tokens, axis=1), np.stack(margins, axis=1)

    @torch.no_grad()
    def enter(self, ids: Array) -> tuple[torch.Tensor, Arguments]:
        """Return what the first block gets for ids (B, T): hidden states, float32 (B, T, hidden),
        and the arguments that every block is called with beside them."""
        first = self.model.get_submodule(self._decoder.blocks()[0])
        kept, entered = first.forward, []

        def stop(hidden: torch.Tensor, **arguments: object) -> torch.Tensor:
            entered.append((hidden, arguments))
            raise _EnteredError

        first.forward = stop
        try:
            self.model.base_model(inputs_embeds=self._embed(ids), use_cache=False)
        except _EnteredError:
            pass
        finally:
            first.forward = kept
        states, arguments = entered[0]
        return states, arguments

    def run(self, block: str, hidden: torch.Tensor, arguments: Arguments) -> torch.Tensor:
        """Return what leaves `block` for the states (B, T, hidden) that enter it."""
        module = self.model.get_submodule(block)
        states: torch.Tensor = module.forward(hidden, **arguments)
        return states

    def leave(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the states after the last norm for those that leave the last block."""
        states: torch.Tensor = self.model.get_submodule(self._decoder.final_norm)(hidden)
        return states

    def unembed(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return the gradient (n, hidden) by the states for one by the logits (n, vocabulary)."""
        return gradient @ self.head()

    def _embed(self, ids: Array) -> torch.Tensor:
        """Return the embedding rows of ids (B, T), float32 (B, T, hidden)."""
        unique, inverse = np.unique(ids, return_inverse=True)
        name = f"{self._decoder.embedding}.weight"
        rows = [self._source.read_rows(name, int(i), int(i) + 1) for i in unique]
        return torch.from_numpy(np.concatenate(rows))[torch.from_numpy(inverse.reshape(ids.shape))]

    def head(self) -> torch.Tensor:
        """Return the output embedding, float32 (vocabulary, hidden)."""
        if self._kept_head is not None:
            return self._kept_head
        decoder = self._decoder
        head = self._read(
            f"{decoder.embedding if decoder.tied_embeddings else decoder.head}.weight"
        )
        self._kept_head = head if self._keep else None
        return head

    def _read(self, name: str) -> torch.Tensor:
        # into torch's own memory: its alignment is fixed, on which the order of sums may depend
        shape = self._shapes[name]
        tensor = torch.empty(shape)
        step = max(1, _READ * shape[0] // tensor.numel())
        for start in range(0, shape[0], step):
            stop = min(start + step, shape[0])
            tensor[start:stop] = torch.from_numpy(self._source.read_rows(name, start, stop))
        return tensor

    def load(self, path: str) -> None:
        """Give the module at `path` the weights that it has not got yet."""
        module = self.model.get_submodule(path)
        missing = [name for name, p in module.named_parameters() if p.is_meta]
        state = {name: self._read(f"{path}.{name}") for name in missing}
        module.load_state_dict(state, assign=True, strict=False)

    @contextlib.contextmanager
    def loaded(self, path: str) -> Iterator[None]:
        """Hold the weights of the block at `path`."""
        self.load(path)
        yield
        if not self._keep:
            self.model.get_submodule(path).to_empty(device="meta")

    def _run_block(
        self,
        path: str,
        forward: Callable[..., torch.Tensor],
        hidden: torch.Tensor,
        **arguments: object,
    ) -> torch.Tensor:
        """Run a block on a few rows of `hidden` (B, T, hidden) after the other."""
        rows = len(hidden)
        step = rows if arguments.get("use_cache") else max(1, _BLOCK_TOKENS // hidden.shape[1])
        with self.loaded(path):
            parts = []
            for part in (slice(start, start + step) for start in range(0, rows, step)):
                parts.append(forward(hidden[part], **of_rows(arguments, rows, part)))
        return torch.cat(parts)


def perplexity(
    source: WeightSource,
    ids: Array,
    window: int = 512,
    bos: int | None = None,
    max_windows: int | None = None,
    progress: evaluation.Progress | None = None,
) -> evaluation.PerplexityResult:
    """Return the perplexity of token ids (T,) under the weights of `source`."""
    cut = evaluation.windows(ids, window, bos, max_windows)
    return evaluation.summarize(ReferenceModel(source).score(cut), len(cut), progress)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute with one thread: its sums depend on how many there are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _score_window(states: torch.Tensor, ids: Array, head: torch.Tensor) -> Array:
    scores = []
    for start in range(0, len(ids) - 1, _HEAD_ROWS):
        stop = min(start + _HEAD_ROWS, len(ids) - 1)
        chosen = torch.from_numpy(np.ascontiguousarray(ids[start + 1 : stop + 1]))
        logits = states[start:stop] @ head.T
        total = torch.logsumexp(logits.double(), dim=1)
        scores.append((logits.gather(1, chosen[:, None])[:, 0].double() - total).numpy())
    return np.concatenate(scores)


def of_rows(arguments: Arguments, rows: int, part: slice) -> Arguments:
    """Return the arguments with rows `part` of what has a row for each of a batch of `rows`."""

    def cut(value: object) -> object:
        per_row = isinstance(value, torch.Tensor) and value.ndim and len(value) == rows
        return value[part] if per_row else value  # type: ignore[index]

    return {name: cut(value) for name, value in arguments.items()}


def check_config(config: families.Config) -> None:
    """Raise `BadFileError` where transformers cannot build a model of `config`."""
    _empty_model(config)


def _empty_model(config: families.Config) -> transformers.PreTrainedModel:
    """Return the model on the meta device; only its rotary tables hold values."""
    fields = {k: v for k, v in config.items() if k not in ("model_type", "dtype", "torch_dtype")}
    try:
        hf = transformers.AutoConfig.for_model(config["model_type"], **fields)
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(
                hf, dtype=torch.float32, attn_implementation="sdpa"
            )
    except (StrictDataclassError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise BadFileError(
            f"transformers cannot build the model of this config.json ({reason}); "
            "use the config.json that belongs to the checkpoint."
        ) from None
    for path, module in list(model.named_modules()):
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            model.set_submodule(path, type(module)(hf))  # a rotary table: computed from the config
    model.eval()
    return model
