"""Show a checkpoint under the names and in the orientation of its family (`decoder_model.py`).

Checkpoints that the base model alone was saved to leave its prefix out (`h.0.ln_1.weight` for
`transformer.h.0.ln_1.weight`), and GPT-2's linears are stored as (inputs, outputs); here every linear is
(outputs, inputs) under its full name.
"""

from pathlib import Path

import numpy as np

from shiftadd_tvm import families
from shiftadd_tvm.checkpoint_base import Checkpoint
from shiftadd_tvm.decoder_model import Decoder
from shiftadd_tvm.errors import BadFileError, UnsupportedError


class FamilyCheckpoint(Checkpoint):
    """Another checkpoint, its names completed and its transposed matrices turned."""

    def __init__(self, inner: Checkpoint, decoder: Decoder) -> None:
        self.path, self.config, self._inner = inner.path, inner.config, inner
        expected = decoder.tensor_shapes()
        stored = {name: name for name in inner.names()}
        others = dict(decoder.aliases)
        for name in expected:
            module, _, suffix = name.rpartition(".")
            candidates = name.removeprefix(decoder.base), f"{others.get(module)}.{suffix}"
            for other in candidates:
                if name not in stored and other in stored:
                    stored[name] = stored.pop(other)
        self._stored = stored  # our name -> the checkpoint's
        self._transposed = decoder.transposed()
        self._kept: tuple[str, np.ndarray] | None = None  # the last transposed matrix: read by rows

    def __contains__(self, name: str) -> bool:
        """Tell whether a tensor of that name is there."""
        return name in self._stored

    def names(self) -> list[str]:
        """Return the sorted tensor names."""
        return sorted(self._stored)

    def tokenizer_files(self) -> dict[str, bytes]:
        """Return the tokenizer files of the checkpoint."""
        return self._inner.tokenizer_files()

    def source_hash(self) -> str:
        """Return the checkpoint's own hash."""
        return self._inner.source_hash()

    def stored_as(self) -> str:
        """Return how the checkpoint stores its weights."""
        return self._inner.stored_as()

    def stored_bytes(self, name: str) -> int:
        """Return the bytes that the checkpoint holds a tensor in."""
        return self._inner.stored_bytes(self._stored[name])

    def _shape(self, name: str) -> tuple[int, ...]:
        shape = self._inner._shape(self._stored[name])
        return shape[::-1] if name in self._transposed else shape

    def _dtype(self, name: str) -> str:
        return self._inner._dtype(self._stored[name])

    def _rows(self, name: str, start: int, stop: int) -> np.ndarray:
        if name not in self._transposed:
            return self._inner._rows(self._stored[name], start, stop)
        if self._kept is None or self._kept[0] != name:
            stored = self._stored[name]
            whole = self._inner._rows(stored, 0, self._inner._shape(stored)[0])
            self._kept = name, np.ascontiguousarray(whole.T)
        return self._kept[1][start:stop].copy()

    def _files(self) -> list[Path]:
        return self._inner._files()


def of_family(checkpoint: Checkpoint) -> Checkpoint:
    """Return `checkpoint` as its family names it, or as it is where nothing differs; whether its
    config is supported is judged later."""
    try:
        decoder = families.read_config(checkpoint.config)
    except (BadFileError, UnsupportedError):
        return checkpoint
    missing = any(name not in checkpoint for name in decoder.tensor_shapes())
    return FamilyCheckpoint(checkpoint, decoder) if missing or decoder.transposed() else checkpoint
