"""The reference: a transformers model in float32, run block by block in bounded memory.

The model is built without weights (meta device); those of a block exist only while it runs, read
from a `WeightSource`: a source checkpoint, or a packed model seen through `DequantizedModel`. All
rows pass through a block before the next one is read, so weights are streamed once per batch.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError

from shiftadd_tvm import evaluation, families, sparse_experts
from shiftadd_tvm.decoder_model import Decoder
from shiftadd_tvm.errors import BadFileError

Array = np.ndarray

_BLOCK_TOKENS = 4096  # that pass through a block together: bounds the activations
_HEAD_ROWS, _HEAD_LOGITS = 256, 1 << 25  # rows and logits that exist together, at most
_BATCH_TOKENS = 1 << 16  # whose hidden states exist together: weights are read once for them
_READ = 1 << 22  # weights that are read together


@dataclass(frozen=True)
class Arguments:
    """What a block is called with behind the hidden states."""

    positional: tuple[object, ...]
    named: dict[str, object]

    def of_rows(self, rows: int, part: slice, heads: int) -> "Arguments":
        """Return the arguments with rows `part` of what has a row for each of a batch of `rows`, or
        one for each of its heads."""

        def cut(value: object) -> object:
            if not isinstance(value, torch.Tensor) or not value.ndim:
                return value
            if len(value) == rows:
                return value[part]
            if value.ndim == 3 and len(value) == rows * heads:  # ALiBi's
                return value[part.start * heads : part.stop * heads]
            return value

        named = {name: cut(value) for name, value in self.named.items()}
        return Arguments(tuple(cut(value) for value in self.positional), named)

    def caching(self) -> bool:
        """Tell whether the block writes into a key/value cache."""
        values = (*self.positional, *self.named.values())
        return any(isinstance(value, transformers.Cache) for value in values)


class WeightSource(Protocol):
    """What the reference reads: a checkpoint, or anything that looks like one."""

    @property
    def config(self) -> families.Config:
        """The Hugging Face config."""

    def read_rows(self, name: str, start: int, stop: int) -> Array:
        """Return rows [start, stop) of a tensor, float32."""


class ReferenceModel:
    """A decoder whose weights are read as they are needed, or kept once they are read."""

    def __init__(
        self, source: WeightSource, *, keep: bool = False, device: str = "cpu"
    ) -> None:
        """Build the empty model; `keep` holds every weight in memory from its first use on.

        It computes on `device`, torch's name of one; states that it is given and gives lie there.
        """
        self._source, self._keep, self.device = source, keep, torch.device(device)
        self._decoder = families.read_config(source.config)
        self._shapes = self._decoder.tensor_shapes()
        self._kept_head: torch.Tensor | None = None
        self.model = _empty_model(source.config, self._decoder)
        _move_buffers(self.model, self.device)
        for path in self._outer_modules():
            self.load(path)
        for path in self._decoder.blocks():
            block = self.model.get_submodule(path)
            block.forward = functools.partial(self._run_block, path, block.forward)

    def _outer_modules(self) -> list[str]:
        """Return the modules with weights outside the blocks, embedding and head left out."""
        decoder = self._decoder
        inside = tuple(f"{path}." for path in (*decoder.blocks(), decoder.embedding, decoder.head))
        names = [name for name in self._shapes if not name.startswith(inside)]
        return list(dict.fromkeys(name.rpartition(".")[0] for name in names))

    @property
    def vocabulary(self) -> int:
        """The number of tokens."""
        return self._decoder.vocabulary

    @torch.inference_mode()
    def hidden(self, ids: Array, **arguments: object) -> torch.Tensor:
        """Return the hidden states after the last norm, float32 (B, T, hidden), of ids (B, T)."""
        ids = np.asarray(ids)
        arguments = {"use_cache": False, **arguments}
        output = self.model.base_model(input_ids=self._renumbered(ids), **arguments)
        states: torch.Tensor = output.last_hidden_state
        return states

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits, float32 (n, vocabulary), of a few hundred hidden rows (n, hidden)."""
        return self.capped(hidden @ self.head().T)

    def capped(self, logits: torch.Tensor) -> torch.Tensor:
        """Return logits (n, vocabulary) with the model's soft cap."""
        return soft_cap(logits, self._decoder.logit_cap)

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
                yield self._score_window(state, ids, head)

    @torch.inference_mode()
    def greedy(self, ids: Array, count: int) -> tuple[Array, Array]:
        """Return `count` greedy tokens int64 (B, count) after prompts (B, T), and for each by how
        much its logit exceeds the second best, float32 (B, count)."""
        cache = transformers.DynamicCache()
        tokens, margins = [], []
        for _ in range(count):
            states = self.hidden(ids, use_cache=True, past_key_values=cache)
            best = self.logits(states[:, -1]).topk(2)
            ids = best.indices[:, :1].cpu().numpy()
            tokens.append(ids[:, 0])
            margins.append((best.values[:, 0] - best.values[:, 1]).cpu().numpy())
        return np.stack(tokens, axis=1), np.stack(margins, axis=1)

    @torch.no_grad()
    def enter(self, ids: Array) -> tuple[torch.Tensor, dict[str, Arguments]]:
        """Return what the first block gets for ids (B, T): hidden states, float32 (B, T, hidden),
        and by block what it is called with beside them."""
        blocks = {path: self.model.get_submodule(path) for path in self._decoder.blocks()}
        kept = {path: block.forward for path, block in blocks.items()}
        entered: dict[str, Arguments] = {}
        states: list[torch.Tensor] = []

        def note(path: str, hidden: torch.Tensor, *positional: object, **named: object) -> object:
            entered[path] = Arguments(positional, named)
            states.append(hidden)
            return self._left(hidden)  # to the next block, as it came

        for path, block in blocks.items():
            block.forward = functools.partial(note, path)
        try:
            self.model.base_model(input_ids=self._renumbered(ids), use_cache=False)
        finally:
            for path, block in blocks.items():
                block.forward = kept[path]
        return states[0], entered

    def run(
        self, block: str, hidden: torch.Tensor, arguments: dict[str, Arguments]
    ) -> torch.Tensor:
        """Return what leaves `block` for the states (B, T, hidden) that enter it, called with its
        own of the `arguments`."""
        module, own = self.model.get_submodule(block), arguments[block]
        left = module.forward(hidden, *own.positional, **own.named)
        states: torch.Tensor = left[0] if self._decoder.block_tuple else left
        return states

    def _left(self, hidden: torch.Tensor) -> object:
        """Return what transformers' block returns."""
        return (hidden, None) if self._decoder.block_tuple else hidden

    def leave(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the states that the head reads for those that leave the last block."""
        for path in (self._decoder.final_norm, self._decoder.project_out):
            hidden = self.model.get_submodule(path)(hidden) if path else hidden
        return hidden

    def _renumbered(self, ids: Array) -> torch.Tensor:
        """Give the embedding the rows of ids (B, T) alone; return the ids by these rows, so that the
        model embeds them as it does."""
        unique, inverse = np.unique(ids, return_inverse=True)
        name = f"{self._decoder.embedding}.weight"
        rows = [self._source.read_rows(name, int(i), int(i) + 1) for i in unique]
        module = self.model.get_submodule(self._decoder.embedding)
        weight = torch.from_numpy(np.concatenate(rows)).to(self.device)
        module.weight = torch.nn.Parameter(weight, requires_grad=False)
        module.padding_idx = None  # an id of the whole vocabulary
        return torch.from_numpy(inverse.reshape(ids.shape)).to(self.device)

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
        return tensor.to(self.device)

    def load(self, path: str) -> None:
        """Give the module at `path` the weights that it has not got yet."""
        module = self.model.get_submodule(path)
        missing = [name for name, p in module.named_parameters() if p.is_meta]
        stored = self._decoder.transposed()
        state = {name: self._read(f"{path}.{name}") for name in missing}
        for name in state:
            if f"{path}.{name}" in stored:  # we read (outputs, inputs)
                state[name] = state[name].T.contiguous()
        module.load_state_dict(state, assign=True, strict=False)

    @contextlib.contextmanager
    def loaded(self, path: str) -> Iterator[None]:
        """Hold the weights of the block at `path`; somebody who holds them already goes on to."""
        held = not any(p.is_meta for p in self.model.get_submodule(path).parameters())
        self.load(path)
        yield
        if not (self._keep or held):
            self.model.get_submodule(path).to_empty(device="meta")

    def _run_block(
        self,
        path: str,
        forward: Callable[..., object],
        hidden: torch.Tensor,
        *positional: object,
        **named: object,
    ) -> object:
        """Run a block on a few rows of `hidden` (B, T, hidden) after the other."""
        rows, arguments = len(hidden), Arguments(positional, named)
        step = rows if arguments.caching() else max(1, _BLOCK_TOKENS // hidden.shape[1])
        with self.loaded(path):
            parts = []
            for start in range(0, rows, step):
                part = slice(start, min(start + step, rows))
                own = arguments.of_rows(rows, part, self._decoder.heads)
                left = forward(hidden[part], *own.positional, **own.named)
                parts.append(left[0] if isinstance(left, tuple) else left)
        return self._left(torch.cat(parts))

    def _score_window(self, states: torch.Tensor, ids: Array, head: torch.Tensor) -> Array:
        scores, step = [], min(_HEAD_ROWS, max(1, _HEAD_LOGITS // len(head)))
        for start in range(0, len(ids) - 1, step):
            stop = min(start + step, len(ids) - 1)
            following = np.ascontiguousarray(ids[start + 1 : stop + 1])
            chosen = torch.from_numpy(following).to(self.device)
            logits = self.capped(states[start:stop] @ head.T)
            total = torch.logsumexp(logits.double(), dim=1)
            found = logits.gather(1, chosen[:, None])[:, 0].double() - total
            scores.append(found.cpu().numpy())
        return np.concatenate(scores)


def soft_cap(logits: torch.Tensor, cap: float) -> torch.Tensor:
    """Return cap · tanh(logits / cap), or the logits where `cap` is 0."""
    return cap * torch.tanh(logits / cap) if cap else logits


def uncapped(gradient: torch.Tensor, logits: torch.Tensor, cap: float) -> torch.Tensor:
    """Return the gradient by what `soft_cap` made `logits` of, for the gradient by them."""
    return gradient * (1 - (logits / cap).square()) if cap else gradient


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


def check_config(config: families.Config) -> None:
    """Raise `BadFileError` where transformers cannot build a model of `config`."""
    _empty_model(config, families.read_config(config))


def _empty_model(config: families.Config, decoder: Decoder) -> transformers.PreTrainedModel:
    """Return the model on the meta device; only what is computed from the config holds values."""
    fields = {k: v for k, v in config.items() if k not in ("model_type", "dtype", "torch_dtype")}
    kind = decoder.attention
    attention = "eager" if kind.cap or kind.alibi else "sdpa"  # the latter knows neither
    try:
        hf = transformers.AutoConfig.for_model(config["model_type"], **fields)
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(
                hf, dtype=torch.float32, attn_implementation=attention
            )
            sparse_experts.separate(model, decoder)
    except (StrictDataclassError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise BadFileError(
            f"transformers cannot build the model of this config.json ({reason}); "
            "use the config.json that belongs to the checkpoint."
        ) from None
    _compute_buffers(model)
    model.eval()
    return model


@torch.no_grad()
def _compute_buffers(model: transformers.PreTrainedModel) -> None:
    """Give rotary tables and scales of embeddings their values, as transformers computes them."""
    for module in model.modules():
        empty = [name for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta]
        for name in empty:
            module._buffers[name] = torch.empty_like(module._buffers[name], device="cpu")
        if empty:
            model._init_weights(module)


def _move_buffers(model: transformers.PreTrainedModel, device: torch.device) -> None:
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)
