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

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from shiftadd_tvm import bcq
from shiftadd_tvm.errors import BadFileError
from shiftadd_tvm.families import Decoder
from shiftadd_tvm.packed_config import QUANT_METHOD, read_config, read_json
from shiftadd_tvm.packed_layout import Layout, Shape
from shiftadd_tvm.tensorfile import TensorFile

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
GOLDEN = "golden.safetensors"
QUANTIZATION_REPORT = "quantization_report.json"
NOT_TOKENIZER = (CONFIG, INDEX, QUANTIZATION_REPORT)  # the JSON files that are not the tokenizer's

_EXPONENT_BITS = {"F16": 0x7C00, "BF16": 0x7F80, "F32": 0x7F800000, "F64": 0x7FF << 52}
_PIECE = 1 << 20  # values that are checked at a time

Array = np.ndarray


@dataclass(frozen=True)
class Golden:
    """Token ids int32 (P, T) and the dequantized model's logits float32 (P, T, vocabulary)."""

    ids: Array
    logits: Array


class Tensors(Protocol):
    """What holds a packed model's tensors: a safetensors file, or what makes them up."""

    def raw(self, name: str) -> Array:
        """Return a tensor as it is stored."""

    def read_rows(self, name: str, start: int, stop: int) -> Array:
        """Return rows [start, stop) of a tensor as float32."""

    def dtype(self, name: str) -> str:
        """Return the safetensors dtype of a tensor."""

    def shape(self, name: str) -> Shape:
        """Return the shape of a tensor."""


class PackedModel:
    """A validated packed model; its tensors stay mapped until they are used."""

    path: Path
    config: dict[str, object]  # config.json whole
    quantization: dict[str, object]  # its quantization_config
    decoder: Decoder
    layout: Layout
    _files: Mapping[str, Tensors]

    def __init__(self, path: Path, *, golden: bool = True) -> None:
        """Open and validate the folder `path`; `golden=False` while it is not written yet."""
        self.path = path
        self.config = read_json(path / CONFIG)
        self.quantization, self.decoder, self.layout = read_config(path / CONFIG, self.config)
        self._files = _open_shards(path)
        self._groups = {name: group for group in self.decoder.input_groups() for name in group}
        self._check_tensors()
        self._golden = self._read_golden() if golden else None

    def linears(self) -> list[str]:
        """Return the module paths of the quantized linears, in model order."""
        return list(self.layout.linears())

    def group(self, linear: str) -> tuple[str, ...]:
        """Return the linears that share this one's input, itself included; the first leads."""
        return self._groups[linear]

    def weight(self, linear: str) -> bcq.BCQWeight:
        """Return a linear's planes and scales, zero-copy, with what it shares with its group."""
        shape = self.layout.linears()[linear]
        leader = self._groups[linear][0]
        planes = self.raw(f"{linear}.planes")
        scales: bcq.SeparableScales | bcq.BlockScales
        if self.layout.scale_format == "separable":
            scales = bcq.SeparableScales(
                self.raw(f"{linear}.row_terms"),
                self.raw(f"{leader}.column_terms"),
                self.raw(f"{linear}.plane_terms"),
            )
        else:
            rows, columns = self.layout.block_shape(shape)
            scales = bcq.BlockScales(rows, columns, self.raw(f"{linear}.block_terms"))
        block = self.layout.rotation_block(shape[1])
        rotation = bcq.Rotation(block, self.raw(f"{leader}.signs")) if block > 1 else None
        return bcq.BCQWeight((shape[0], shape[1]), planes, scales, rotation)

    def names(self) -> list[str]:
        """Return the sorted names of the unquantized tensors, 8-bit embeddings' scales included."""
        return sorted(self.layout.plain_shapes())

    def raw(self, name: str) -> Array:
        """Return a tensor as it is stored, zero-copy; bfloat16 is shown as uint16 bits."""
        return self._files[name].raw(name)

    def dtype(self, name: str) -> str:
        """Return the stored safetensors dtype of a tensor, such as "BF16"."""
        return self._files[name].dtype(name)

    def read(self, name: str) -> Array:
        """Return an unquantized tensor as a float32 copy, 8-bit ones dequantized."""
        return self.read_rows(name, 0, self._files[name].shape(name)[0])

    def read_rows(self, name: str, start: int, stop: int) -> Array:
        """Return rows [start, stop) of an unquantized tensor as `read` does."""
        values = self._files[name].read_rows(name, start, stop)
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

    def linear_bytes(self) -> int:
        """Return the bytes of all quantized linears, shared ones once."""
        return self.layout.linear_bytes()

    def effective_bits(self) -> float:
        """Return all bytes of the quantized linears x 8 / their weights."""
        return self.layout.effective_bits()

    def _check_tensors(self) -> None:
        coded, plain = self.layout.coded_shapes(), self.layout.plain_shapes()
        expected = coded | plain
        for name in sorted(self._files.keys() - expected.keys()):
            raise self._bad(f"tensor {name} does not belong to a model of its config.json")
        for name, shape in expected.items():
            if name not in self._files:
                raise self._bad(f"tensor {name} is missing")
            allowed = ("U8",) if name in coded else self.layout.plain_dtypes(name)
            self._check_tensor(name, shape, allowed)

    def _check_tensor(self, name: str, shape: Shape, allowed: tuple[str, ...]) -> None:
        found, dtype = self._files[name].shape(name), self.dtype(name)
        if found != shape:
            raise self._bad(f"tensor {name} has shape {list(found)}, expected {list(shape)}")
        if dtype not in allowed:
            raise self._bad(f"tensor {name} has dtype {dtype}, expected {' or '.join(allowed)}")
        if dtype in _EXPONENT_BITS and not is_finite(self.raw(name), dtype):
            raise self._bad(f"tensor {name} holds NaN or Inf, expected finite numbers")
        linear, _, suffix = name.rpartition(".")
        if suffix in ("planes", "signs"):
            used = self.layout.linears()[linear][1] % 8
            if used and (self.raw(name)[..., -1] >> used).any():
                raise self._bad(f"tensor {name} has bits set past its last input, expected zeros")

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

    def _bad(self, what: str) -> BadFileError:
        return BadFileError(
            f"{self.path} is not a valid packed model: {what}; quantize the checkpoint again."
        )


def open_packed(path: str | Path) -> PackedModel:
    """Open a packed model, validated whole; raise `BadFileError` for anything else."""
    folder = Path(path)
    if not is_packed(folder):
        raise BadFileError(
            f"{folder} is not a packed model: it has no {CONFIG} whose quantization_config says "
            f"{QUANT_METHOD!r}; make one with shiftadd-tvm quantize."
        )
    return PackedModel(folder)


def is_packed(path: str | Path) -> bool:
    """Tell whether the folder `path` says that it is a packed model; raise if its config is bad."""
    config = Path(path) / CONFIG
    if not config.is_file():
        return False
    quantization = read_json(config).get("quantization_config")
    return isinstance(quantization, dict) and quantization.get("quant_method") == QUANT_METHOD


def is_finite(raw: Array, dtype: str) -> bool:
    """Tell whether the float bits `raw` of safetensors `dtype` hold neither NaN nor Inf."""
    mask = _EXPONENT_BITS[dtype]
    bits = raw.view(f"<u{raw.itemsize}").reshape(-1)
    for start in range(0, bits.size, _PIECE):
        if ((bits[start : start + _PIECE] & bits.dtype.type(mask)) == mask).any():
            return False
    return True


def _open_shards(path: Path) -> dict[str, TensorFile]:
    """Return the file of each tensor, as the index says, which must agree with the files."""
    index = read_json(path / INDEX).get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(f, str) for f in index.values()):
        raise BadFileError(
            f"{path / INDEX} has no weight_map of tensor names to file names; "
            "quantize the checkpoint again."
        )
    files: dict[str, TensorFile] = {}
    for shard in sorted(set(index.values())):
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise BadFileError(
                f"{path / INDEX} names the file {shard!r}, expected a .safetensors file beside it; "
                "quantize the checkpoint again."
            )
        file = TensorFile(path / shard)
        claimed = {name for name, home in index.items() if home == shard}
        for name in sorted(claimed ^ set(file.names())):
            raise BadFileError(
                f"{path / shard} and {INDEX} disagree on tensor {name}; "
                "quantize the checkpoint again."
            )
        files |= dict.fromkeys(claimed, file)
    return files
