"""llama.cpp's K-quants with importance matrix, by the quantizer in llama-cpp-python's own library.

"Pure": one type for all linears. The importance of an input is its mean square, the diagonal of H,
which is what llama.cpp's own imatrix tool measures. A type's blocks are 256 weights of a row: where
256 does not divide K, several rows are quantized as one long row (llama.cpp itself would fall back
to another type); rows that are missing to a whole one are zeros and counted.
"""

import importlib.util
import math
from functools import cache

import numpy as np
import torch
from torch import Tensor

from shiftadd_tvm.accuracy.method import Dequantized, Method
from shiftadd_tvm.baselines.ggml import TYPES, Ggml
from shiftadd_tvm.benchmark.turns import ContenderError
from shiftadd_tvm.errors import UnsupportedError

Array = np.ndarray

KINDS = {2: "Q2_K", 3: "Q3_K", 4: "Q4_K"}
_LEAST = 1e-6  # of the largest importance


def quantize(weights: Tensor, hessian: Tensor, bits: int) -> Dequantized:
    """Quantize to the K-quant of so many bits and back."""
    ggml = _library()
    kind = TYPES[KINDS[bits]]
    outputs, inputs = weights.shape
    length = math.lcm(inputs, int(ggml.blck_size(kind)))
    joined = length // inputs  # rows that make a long one
    rows = np.zeros((-(-outputs // joined), length), np.float32)
    rows.reshape(-1, inputs)[:outputs] = weights.numpy()
    packed = np.zeros((len(rows), int(ggml.row_size(kind, length))), np.uint8)
    importance = np.tile(_importance(hessian.diagonal()).numpy(), joined)
    addresses = (rows.ctypes.data, packed.ctypes.data)
    ggml.quantize_chunk(kind, *addresses, 0, len(rows), length, importance.ctypes.data)
    dense = _dequantize(packed, kind).reshape(-1, inputs)[:outputs]
    return Dequantized(torch.from_numpy(dense.copy()), packed.nbytes * 8 / weights.numel())


def _importance(squares: Tensor) -> Tensor:
    """Return the mean squares (K,) of the inputs, none of them zero: ggml divides by their sums."""
    largest = squares.max()
    return squares.clamp_min(_LEAST * largest) if largest > 0 else torch.ones_like(squares)


def _dequantize(packed: Array, kind: int) -> Array:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    return dequantize(packed, GGMLQuantizationType(kind))


@cache
def _library() -> Ggml:
    for name, package in (("llama_cpp", "llama-cpp-python"), ("gguf", "gguf")):
        if importlib.util.find_spec(name) is None:
            raise UnsupportedError(f"{package} is not installed; pip install {package}.")
    try:
        return Ggml()
    except ContenderError as error:
        raise UnsupportedError(f"llama-cpp-python cannot be used: {error}.") from None


METHODS = (
    Method(
        name="llama.cpp-k",
        quantize=quantize,
        widths=tuple(KINDS),
        multiplication_free=False,
        remark="Q2_K, Q3_K, Q4_K, pure, with importance matrix; codes are multiplied",
    ),
)
