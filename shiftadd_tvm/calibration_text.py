"""Which tokens a model is calibrated on: windows of a text file, or of text that it writes itself.

The result is token ids, int64 (windows, length), and a description that goes into the packed model:
what the data were, how much of them and which seed, but no path. Windows begin as texts do where the
model is used: with BOS, if its tokenizer adds one.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from shiftadd_tvm import dataset_text, families
from shiftadd_tvm.checkpoint_base import Checkpoint
from shiftadd_tvm.effort import SEQUENCES
from shiftadd_tvm.errors import BadFileError, UsageError
from shiftadd_tvm.packed_config import OWN_TEXT
from shiftadd_tvm.reference import ReferenceModel
from shiftadd_tvm.tokenizer_file import TOKENIZER, first_token, open_tokenizer, read_config

Array = np.ndarray

LENGTH = 512  # tokens of a window
_FIRST = (
    4  # tokens that a written window begins with, drawn evenly from the vocabulary's first part
)


@dataclass(frozen=True)
class CalibrationData:
    """Token ids int64 (W, T), and what they are."""

    windows: Array
    description: dict[str, object]


def read_text(path: Path) -> str:
    """Return the text of a .txt file, of the "text" fields of a .jsonl file, or of a data set by its
    name (`dataset_text.py`) where there is no such file."""
    if not path.exists() and dataset_text.is_name(str(path)):
        return dataset_text.read(str(path))
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise BadFileError(
            f"{path} cannot be read: {reason}; give a .txt or .jsonl file."
        ) from None
    if path.suffix != ".jsonl":
        return content
    lines = [line for line in content.splitlines() if line.strip()]
    return "\n\n".join(_text_field(path, number, line) for number, line in enumerate(lines, 1))


def _text_field(path: Path, number: int, line: str) -> str:
    try:
        text = json.loads(line)["text"]
        if isinstance(text, str):
            return text
    except (ValueError, KeyError, TypeError):
        pass
    raise BadFileError(
        f'{path}, line {number}: expected a JSON object with a string under "text", found '
        f"{line[:60]!r}; mend the line or leave it out."
    )


def from_text(checkpoint: Checkpoint, text: str, tokens: int, seed: int) -> CalibrationData:
    """Return `tokens` tokens of `text` in windows, drawn without replacement by `seed`."""
    files = checkpoint.tokenizer_files()
    content = files.get(TOKENIZER)
    if content is None:
        raise UsageError(
            f"{checkpoint.path} has no tokenizer.json, so a calibration text cannot be read; put "
            "one beside it, or leave --calib out (the model writes its own text)."
        )
    tokenizer = open_tokenizer(content, checkpoint.path)
    ids = np.array(tokenizer.encode(text, add_special_tokens=False).ids, np.int64)
    if len(ids) < 2:
        raise UsageError("The calibration text has fewer than two tokens; give a longer one.")
    first = _first(tokenizer, files, checkpoint)
    length = min(_window(checkpoint), len(ids) + len(first))
    taken = length - len(first)
    whole = ids[: len(ids) // taken * taken].reshape(-1, taken)
    wanted = min(len(whole), max(1, tokens // length))
    chosen = np.random.Generator(np.random.PCG64(seed)).permutation(len(whole))[:wanted]
    whole = whole[np.sort(chosen)]
    windows = np.concatenate([np.tile(first, (len(whole), 1)), whole], axis=1)
    digest = hashlib.sha256(text.encode("utf-8")).hexdigest()
    description = {"data": "text", "sha256": digest, "tokens": int(wanted * length), "seed": seed}
    return CalibrationData(windows, description)


@torch.no_grad()
def written_by(
    checkpoint: Checkpoint, tokens: int, seed: int, device: str = "cpu"
) -> CalibrationData:
    """Return `tokens` tokens that the model, on `device`, writes itself, each drawn from its own
    distribution.

    The first few of a window are drawn evenly, so that windows differ (LLM-QAT, Liu et al. 2023).
    """
    import transformers

    reference = ReferenceModel(checkpoint, keep=True, device=device)
    length = _window(checkpoint)
    generator = torch.Generator().manual_seed(seed)
    files = checkpoint.tokenizer_files()
    content = files.get(TOKENIZER)
    tokenizer = open_tokenizer(content, checkpoint.path) if content else None
    first = torch.from_numpy(_first(tokenizer, files, checkpoint))
    written = []
    wanted = max(1, tokens // length)
    for start in range(0, wanted, SEQUENCES):
        count = min(SEQUENCES, wanted - start)
        drawn = (count, min(_FIRST, length - len(first)))
        ids = torch.randint(0, reference.vocabulary, drawn, generator=generator)
        ids = torch.cat([first.expand(count, -1), ids], dim=1)
        cache, fresh = transformers.DynamicCache(), ids
        while ids.shape[1] < length:
            states = reference.hidden(fresh.numpy(), use_cache=True, past_key_values=cache)
            likely = torch.softmax(reference.logits(states[:, -1]), dim=1).cpu()
            _require_finite(checkpoint, likely)
            fresh = torch.multinomial(likely, 1, generator=generator)
            ids = torch.cat([ids, fresh], dim=1)
        written.append(ids)
    windows = torch.cat(written).numpy()
    description = {"data": OWN_TEXT, "tokens": int(windows.size), "seed": seed}
    return CalibrationData(windows, description)


def mixed(text: CalibrationData, own: CalibrationData, seed: int) -> CalibrationData:
    """Return the windows of both in an order drawn by `seed`; raise `UsageError` where those of the text
    are shorter, since there is less of it."""
    if text.windows.shape[1] != own.windows.shape[1]:
        raise UsageError(
            f"The calibration text has {text.windows.size} tokens, expected at least "
            f"{own.windows.shape[1]} to be mixed with the model's own; give a longer one."
        )
    both = np.concatenate([text.windows, own.windows])
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(both))
    counts = {"tokens": int(both.size), "own_tokens": int(own.windows.size)}
    return CalibrationData(both[order], {**text.description, **counts})


def _require_finite(checkpoint: Checkpoint, likely: torch.Tensor) -> None:
    if not likely.isfinite().all():
        raise BadFileError(
            f"{checkpoint.path}: the model computes NaN or Inf where it writes text, expected finite "
            "numbers; get its weights again."
        )


def _first(
    tokenizer: Tokenizer | None, files: Mapping[str, bytes], checkpoint: Checkpoint
) -> Array:
    """Return the tokens that begin every text, int64 (0,) or (1,)."""
    if tokenizer is None:
        return np.empty(0, np.int64)
    first = first_token(tokenizer, read_config(files.get, checkpoint.path))
    return np.array([] if first is None else [first], np.int64)


def _window(checkpoint: Checkpoint) -> int:
    """Return the tokens of a window: as many as the model has positions for."""
    return min(LENGTH, families.read_config(checkpoint.config).positions)
