"""cuBLAS by its C interface, as what look-ups are compared with: float16 weights, sums in float32.

Part of the program that times kernels where the GPU is (`timing.py`): it looks for the library there.
"""

from __future__ import annotations

import ctypes
import glob
import os
import sys

from shiftadd_tvm.cuda.gpu import Gpu, MeasureError

NAMES = ("libcublas.so.13", "libcublas.so.12")
FOLDERS = ("/usr/local/cuda*/lib64", "/usr/local/cuda*/targets/*/lib")
PACKAGES = ("nvidia/cu13/lib", "nvidia/cublas/lib")
TRANSPOSED, PLAIN = 1, 0
FLOAT16, SUM_FLOAT32, ANY = 2, 68, -1  # of a matrix; of the sums; which algorithm


def _library() -> ctypes.CDLL:
    found = [os.path.join(path, part) for path in sys.path if path for part in PACKAGES]
    folders = ["", *(place for pattern in (*found, *FOLDERS) for place in sorted(glob.glob(pattern)))]
    for folder in folders:
        for name in NAMES:
            try:
                return ctypes.CDLL(os.path.join(folder, name))
            except OSError:
                continue
    raise MeasureError(f"not installed: {NAMES[0]}, which PyTorch for CUDA or a CUDA toolkit brings")


class Cublas:
    """The library with a handle for the stream of a GPU."""

    def __init__(self, gpu: Gpu) -> None:
        """Load it; raises `MeasureError` where it is not there."""
        self._library, self._handle = _library(), ctypes.c_void_p()
        self._call("cublasCreate_v2", ctypes.byref(self._handle))
        self._call("cublasSetStream_v2", self._handle, gpu.stream)

    def _call(self, name: str, *arguments: object) -> None:
        if status := getattr(self._library, name)(*arguments):
            raise MeasureError(f"{name} failed (status {status})")

    def linear(self, sizes: list[int], addresses: list[ctypes.c_uint64]) -> None:
        """Compute y (M, N) = x (M, K) · w (N, K) transposed, all float16 row by row; sizes M, N, K,
        addresses of x, w, y."""
        tokens, outputs, inputs = map(ctypes.c_int, sizes)
        x, w, y = (ctypes.c_void_p(address.value) for address in addresses)
        one, zero = (ctypes.byref(ctypes.c_float(value)) for value in (1, 0))
        self._call(
            "cublasGemmEx",
            *(self._handle, TRANSPOSED, PLAIN, outputs, tokens, inputs),
            *(one, w, FLOAT16, inputs, x, FLOAT16, inputs),
            *(zero, y, FLOAT16, outputs, SUM_FLOAT32, ANY),
        )
