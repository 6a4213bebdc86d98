"""What every kind of source checkpoint offers: tensors by their Hugging Face names, one at a time.

The kinds are `hf_checkpoint.py` (safetensors) and `gguf_checkpoint.py`; `checkpoint.py` chooses.
Checked here, for all of them: that a tensor exists and holds floats, and that its values are finite.
"""

import abc
import hashlib
import json
from pathlib import Path

import numpy as np

from shiftadd_tvm.errors import BadFileError

FLOATS = ("F16", "BF16", "F32", "F64")  # what weights may be
SAMPLES = 64  # pieces of a file that the source hash looks at
SAMPLE_BYTES = 4096


class Checkpoint(abc.ABC):
    """A source model, opened read-only; its tensors stay on disk until they are read."""

    path: Path  # as the user gave it
    config: dict[str, object]  # config.json with Hugging Face's keys, untouched

    @abc.abstractmethod
    def names(self) -> list[str]:
        """Return the sorted tensor names, as Hugging Face names them."""

    @abc.abstractmethod
    def tokenizer_files(self) -> dict[str, bytes]:
        """Return file name -> bytes of every tokenizer file there is, to be copied verbatim."""

    @abc.abstractmethod
    def stored_as(self) -> str:
        """Return what the weights are stored as, such as "safetensors" or "GPTQ, 4 bits"."""

    @abc.abstractmethod
    def stored_bytes(self, name: str) -> int:
        """Return the bytes that a tensor takes in its file."""

    @abc.abstractmethod
    def _shape(self, name: str) -> tuple[int, ...]: ...

    @abc.abstractmethod
    def _dtype(self, name: str) -> str: ...

    @abc.abstractmethod
    def _rows(self, name: str, start: int, stop: int) -> np.ndarray: ...

    @abc.abstractmethod
    def _files(self) -> list[Path]: ...

    @abc.abstractmethod
    def __contains__(self, name: str) -> bool:
        """Tell whether a tensor of that name is there."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape, [out, in] for the weight of a linear layer."""
        self._require(name)
        return self._shape(name)

    def dtype(self, name: str) -> str:
        """Return the safetensors dtype that keeps a tensor's precision, such as "BF16"."""
        self._require(name)
        return self._dtype(name)

    def read(self, name: str) -> np.ndarray:
        """Return a whole tensor: float32, C-contiguous, in the orientation of `shape`."""
        self._require(name)
        shape = self._shape(name)
        # A scalar has no rows: it is read as one.
        return self._finite(name, self._rows(name, 0, shape[0] if shape else 1))

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Return rows [start, stop) of the first axis as float32; the other rows stay unread."""
        self._require(name)
        shape = self._shape(name)
        assert shape and 0 <= start <= stop <= shape[0], (name, shape, start, stop)
        return self._finite(name, self._rows(name, start, stop))

    def source_hash(self) -> str:
        """Return a sha256 that changes with the model, to key resumable work (not for security).

        It covers config, tensor table, file sizes and samples of the content, not the paths: a
        checkpoint that was moved keeps its hash.
        """
        table = [[name, list(self._shape(name)), self._dtype(name)] for name in self.names()]
        digest = hashlib.sha256(json.dumps([self.config, table], sort_keys=True).encode("utf-8"))
        for path in self._files():
            _hash_samples(digest, path)
        return digest.hexdigest()

    def _require(self, name: str) -> None:
        if name not in self:
            raise BadFileError(
                f"{self.path} holds no tensor {name}, which a model of its configuration needs; "
                "get the whole checkpoint again, or mend its config.json."
            )
        if self._dtype(name) not in FLOATS:
            raise BadFileError(
                f"{self.path}: tensor {name} has dtype {self._dtype(name)}, expected "
                f"{', '.join(FLOATS)}; get the checkpoint with float weights."
            )

    def _finite(self, name: str, values: np.ndarray) -> np.ndarray:
        """Return `values`; a NaN or Inf would spread through everything computed from them."""
        finite = np.isfinite(values)
        if not finite.all():
            nan = int(np.isnan(values).sum())
            inf = values.size - int(finite.sum()) - nan
            raise BadFileError(
                f"{self.path}: tensor {name} holds {nan} NaN and {inf} Inf among {values.size} "
                "values, expected finite numbers; get the checkpoint again."
            )
        return values


def _hash_samples(digest: "hashlib._Hash", path: Path) -> None:
    size = path.stat().st_size
    digest.update(size.to_bytes(8, "little"))
    step = max((size - SAMPLE_BYTES) // (SAMPLES - 1), SAMPLE_BYTES)
    with path.open("rb") as stream:
        for position in range(0, size, step):
            stream.seek(position)
            digest.update(stream.read(SAMPLE_BYTES))
