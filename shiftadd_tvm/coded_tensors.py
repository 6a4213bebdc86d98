"""The coded linears of a packed model, whatever kind it is: their files, checks and weights."""

import abc
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from shiftadd_tvm import bcq
from shiftadd_tvm.errors import BadFileError
from shiftadd_tvm.packed_config import read_json
from shiftadd_tvm.packed_layout import CodedLayout, Shape
from shiftadd_tvm.tensorfile import TensorFile

INDEX = "model.safetensors.index.json"

_EXPONENT_BITS = {"F16": 0x7C00, "BF16": 0x7F80, "F32": 0x7F800000, "F64": 0x7FF << 52}
_PIECE = 1 << 20  # values that are checked at a time

Array = np.ndarray


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

    def release(self) -> None:
        """Give memory back that was only read."""


class CodedTensors(abc.ABC):
    """What every kind of packed model has: linears as planes and scales, in mapped files."""

    path: Path
    quantization: dict[str, object]  # the quantization_config
    layout: CodedLayout
    _files: Mapping[str, Tensors]
    _groups: dict[str, tuple[str, ...]]  # of every linear
    stored = ""  # dtype of linears that are numbers and not coded: of made-up models only

    def linears(self) -> list[str]:
        """Return the module paths of the quantized linears, in model order."""
        return list(self.layout.linears())

    @abc.abstractmethod
    def names(self) -> list[str]:
        """Return the sorted names of the tensors that are not of a coded linear's planes and scales."""

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

    def raw(self, name: str) -> Array:
        """Return a tensor as it is stored, zero-copy; bfloat16 is shown as uint16 bits."""
        return self._files[name].raw(name)

    def dtype(self, name: str) -> str:
        """Return the stored safetensors dtype of a tensor, such as "BF16"."""
        return self._files[name].dtype(name)

    def read(self, name: str) -> Array:
        """Return an unquantized tensor as a float32 copy."""
        return self.read_rows(name, 0, self._files[name].shape(name)[0])

    def read_rows(self, name: str, start: int, stop: int) -> Array:
        """Return rows [start, stop) of an unquantized tensor as `read` does."""
        return self._files[name].read_rows(name, start, stop)

    def release(self) -> None:
        """Give the memory of what was read from the files back; arrays of them stay valid."""
        for file in set(self._files.values()):
            file.release()

    def linear_bytes(self) -> int:
        """Return the bytes of all quantized linears, shared ones once."""
        return self.layout.linear_bytes()

    def effective_bits(self) -> float:
        """Return all bytes of the quantized linears x 8 / their weights."""
        return self.layout.effective_bits()

    def _check_coded(self, plain: Mapping[str, tuple[Shape, tuple[str, ...]]]) -> None:
        """Raise `BadFileError` unless the tensors are the coded ones and `plain`, of these shapes and
        one of these dtypes."""
        coded = {name: (shape, ("U8",)) for name, shape in self.layout.coded_shapes().items()}
        for name in sorted(self._files.keys() - coded.keys() - plain.keys()):
            raise self._bad(f"tensor {name} does not belong to a model of its config.json")
        for name, (shape, dtypes) in {**coded, **plain}.items():
            if name not in self._files:
                raise self._bad(f"tensor {name} is missing")
            self._check_tensor(name, shape, dtypes)

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

    def _bad(self, what: str) -> BadFileError:
        return BadFileError(
            f"{self.path} is not a valid packed model: {what}; quantize the checkpoint again."
        )


def is_finite(raw: Array, dtype: str) -> bool:
    """Tell whether the float bits `raw` of safetensors `dtype` hold neither NaN nor Inf."""
    mask = _EXPONENT_BITS[dtype]
    bits = raw.view(f"<u{raw.itemsize}").reshape(-1)
    for start in range(0, bits.size, _PIECE):
        if ((bits[start : start + _PIECE] & bits.dtype.type(mask)) == mask).any():
            return False
    return True


def open_shards(path: Path) -> dict[str, TensorFile]:
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
