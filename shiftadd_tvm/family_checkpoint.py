"""Show a checkpoint under the names and in the orientation of its family (`decoder_model.py`,
`encoder_model.py`).

Checkpoints that the base model alone was saved to leave its prefix out (`h.0.ln_1.weight` for
`transformer.h.0.ln_1.weight`), and GPT-2's linears are stored as (inputs, outputs); here every linear is
(outputs, inputs) under its full name. Norms of BERT's first checkpoints have TensorFlow's names.
"""

from pathlib import Path

import numpy as np

from shiftadd_tvm import encoder_families, families
from shiftadd_tvm.checkpoint_base import Checkpoint
from shiftadd_tvm.decoder_model import Decoder
from shiftadd_tvm.encoder_model import Encoder
from shiftadd_tvm.errors import BadFileError, UnsupportedError

TENSORFLOW = {"weight": "gamma", "bias": "beta"}  # of norms: our suffix -> TensorFlow's


class FamilyCheckpoint(Checkpoint):
    """Another checkpoint, its names completed and its transposed matrices turned."""

    def __init__(self, inner: Checkpoint, model: Decoder | Encoder) -> None:
        self.path, self.config, self._inner = inner.path, inner.config, inner
        stored = {name: name for name in inner.names()}
        others = dict(model.aliases)
        for name in model.tensor_shapes():
            module, _, suffix = name.rpartition(".")
            old = f"{module}.{TENSORFLOW.get(suffix)}"
            candidates = [name.removeprefix(model.base), f"{others.get(module)}.{suffix}"]
            for other in (*candidates, old, old.removeprefix(model.base)):
                if name not in stored and other in stored:
                    stored[name] = stored.pop(other)
        self._stored = stored  # our name -> the checkpoint's
        self._transposed = model.transposed()
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
        model = _described(checkpoint)
    except (BadFileError, UnsupportedError):
        return checkpoint
    missing = any(name not in checkpoint for name in model.tensor_shapes())
    return FamilyCheckpoint(checkpoint, model) if missing or model.transposed() else checkpoint


def _described(checkpoint: Checkpoint) -> Decoder | Encoder:
    config = checkpoint.config
    if encoder_families.is_encoder(config):
        return encoder_families.read_config(config)
    return families.read_config(config)
