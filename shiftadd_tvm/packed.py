"""Contract 1, the packed model: a Hugging Face folder with binary planes and exponents, read here.

    config.json                     the checkpoint's with quantization_config (packed_config.py)
    model-00001-of-000NN.safetensors, ...   one a block, one for the rest (packed_layout.py)
    model.safetensors.index.json    tensor name -> file, as Hugging Face has it
    golden.safetensors              ids I32 (P, T) and logits F32 (P, T, vocabulary): what the
                                    dequantized model computes, for later stages to check themselves
    quantization_report.json        errors by linear, for people; optional (quantization_report.py)
    tokenizer files                 verbatim

`open_packed` validates the folder whole before anything is used. `packed_writer.py` writes it.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shiftadd_tvm.coded_tensors import INDEX, CodedTensors, is_finite, open_shards
from shiftadd_tvm.errors import BadFileError, UnsupportedError
from shiftadd_tvm.families import Decoder
from shiftadd_tvm.packed_config import QUANT_METHOD, read_config, read_json
from shiftadd_tvm.packed_layout import Layout
from shiftadd_tvm.tensorfile import TensorFile

CONFIG = "config.json"
GOLDEN = "golden.safetensors"
QUANTIZATION_REPORT = "quantization_report.json"
NOT_TOKENIZER = (CONFIG, INDEX, QUANTIZATION_REPORT)  # the JSON files that are not the tokenizer's

Array = np.ndarray


@dataclass(frozen=True)
class Golden:
    """Token ids int32 (P, T) and the dequantized model's logits float32 (P, T, vocabulary)."""

    ids: Array
    logits: Array


class PackedModel(CodedTensors):
    """A validated packed model; its tensors stay mapped until they are used."""

    config: dict[str, object]  # config.json whole
    quantization: dict[str, object]  # its quantization_config
    decoder: Decoder
    layout: Layout

    def __init__(self, path: Path, *, golden: bool = True) -> None:
        """Open and validate the folder `path`; `golden=False` while it is not written yet."""
        self.path = path
        self.config = read_json(path / CONFIG)
        self.quantization, self.decoder, self.layout = read_config(path / CONFIG, self.config)
        self._files = open_shards(path)
        self._groups = {name: group for group in self.layout.groups() for name in group}
        shapes = self.layout.plain_shapes()
        dtypes = self.layout.plain_dtypes
        self._check_coded({name: (shape, dtypes(name)) for name, shape in shapes.items()})
        self._golden = self._read_golden() if golden else None
        self.release()

    def names(self) -> list[str]:
        """Return the sorted names of the unquantized tensors, 8-bit embeddings' scales included."""
        return sorted(self.layout.plain_shapes())

    def read_rows(self, name: str, start: int, stop: int) -> Array:
        """Return rows [start, stop) of an unquantized tensor as float32, 8-bit ones dequantized."""
        values = super().read_rows(name, start, stop)
        if self.dtype(name) == "I8":
            values *= self.raw(f"{name}_scale")[start:stop, None]
        return values

    @property
    def has_golden(self) -> bool:
        """Tell whether the folder has golden prompts: all but synthetic models do."""
        return self._golden is not None

    def golden(self) -> Golden:
        """Return the golden prompts and logits."""
        assert self._golden is not None, "opened without its golden file"
        return self._golden

    def tokenizer_files(self) -> dict[str, bytes]:
        """Return file name -> bytes of every other file of the folder: what ships with an artifact."""
        files = sorted(file for file in self.path.iterdir() if file.is_file())
        kept = (f for f in files if f.name not in NOT_TOKENIZER and f.suffix != ".safetensors")
        return {file.name: file.read_bytes() for file in kept}

    def _read_golden(self) -> Golden:
        file = TensorFile(self.path / GOLDEN)
        if file.names() != ["ids", "logits"]:
            raise self._bad(f"{GOLDEN} holds {file.names()}, expected ids and logits")
        ids, logits = file.raw("ids"), file.raw("logits")
        vocabulary = self.decoder.vocabulary
        dtypes = (file.dtype("ids"), file.dtype("logits"))
        if dtypes != ("I32", "F32") or ids.ndim != 2 or logits.shape != (*ids.shape, vocabulary):
            raise self._bad(
                f"{GOLDEN} holds ids {dtypes[0]} {list(ids.shape)} and logits {dtypes[1]} "
                f"{list(logits.shape)}, expected I32 [P, T] and F32 [P, T, {vocabulary}]"
            )
        if not ids.size or ids.min() < 0 or ids.max() >= vocabulary:
            raise self._bad(f"{GOLDEN} needs token ids from 0 to {vocabulary - 1}")
        if not is_finite(logits, "F32"):
            raise self._bad(f"the logits of {GOLDEN} hold NaN or Inf")
        return Golden(ids, logits)


def open_packed(path: str | Path) -> PackedModel:
    """Open a packed model, validated whole; raise `BadFileError` for anything else."""
    folder = Path(path)
    if not is_packed(folder):
        raise BadFileError(
            f"{folder} is not a packed model: it has no {CONFIG} whose quantization_config says "
            f"{QUANT_METHOD!r}; make one with shiftadd-tvm quantize."
        )
    if kind(folder) == "onnx":
        raise UnsupportedError(
            f"{folder} holds an ONNX graph, expected a language model here; compile it and call the "
            "artifact (docs/onnx.md)."
        )
    return PackedModel(folder)


def is_packed(path: str | Path) -> bool:
    """Tell whether the folder `path` says that it is a packed model; raise if its config is bad."""
    return _quantization(path).get("quant_method") == QUANT_METHOD


def kind(path: str | Path) -> object:
    """Return what the folder `path` says of the kind of its packed model, such as "hf" or "onnx"."""
    return _quantization(path).get("kind")


def _quantization(path: str | Path) -> dict[str, object]:
    config = Path(path) / CONFIG
    if not config.is_file():
        return {}
    quantization = read_json(config).get("quantization_config")
    return quantization if isinstance(quantization, dict) else {}


