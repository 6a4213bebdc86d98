"""ggml's C functions that the llama.cpp peers need, out of the libraries that llama-cpp-python ships."""

import ctypes
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from shiftadd_tvm.benchmark.turns import ContenderError

TYPES = {"F32": 0, "Q4_0": 2, "Q8_0": 8, "Q2_K": 10, "Q3_K": 11, "Q4_K": 12, "Q6_K": 14}
REPACK = b"CPU_REPACK"
POINTER, SIZE, INT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int

Array = np.ndarray


class InitParameters(ctypes.Structure):
    """ggml_init_params."""

    _fields_ = [("mem_size", SIZE), ("mem_buffer", POINTER), ("no_alloc", ctypes.c_bool)]


SIGNATURES = {  # name -> (result, arguments)
    "ggml_init": (POINTER, [InitParameters]),
    "ggml_new_tensor_2d": (POINTER, [POINTER, INT, ctypes.c_int64, ctypes.c_int64]),
    "ggml_mul_mat": (POINTER, [POINTER, POINTER, POINTER]),
    "ggml_new_graph_custom": (POINTER, [POINTER, SIZE, ctypes.c_bool]),
    "ggml_graph_overhead_custom": (SIZE, [SIZE, ctypes.c_bool]),
    "ggml_tensor_overhead": (SIZE, []),
    "ggml_build_forward_expand": (None, [POINTER, POINTER]),
    "ggml_row_size": (SIZE, [INT, ctypes.c_int64]),
    "ggml_blck_size": (ctypes.c_int64, [INT]),
    "ggml_quantize_chunk": (
        SIZE,
        [INT, POINTER, POINTER, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, POINTER],
    ),
    "ggml_backend_alloc_ctx_tensors_from_buft": (POINTER, [POINTER, POINTER]),
    "ggml_backend_tensor_set": (None, [POINTER, POINTER, SIZE, SIZE]),
    "ggml_backend_tensor_get": (None, [POINTER, POINTER, SIZE, SIZE]),
    "ggml_backend_graph_compute": (INT, [POINTER, POINTER]),
    "ggml_backend_get_default_buffer_type": (POINTER, [POINTER]),
    "ggml_backend_buft_name": (ctypes.c_char_p, [POINTER]),
    "ggml_backend_reg_dev_get": (POINTER, [POINTER, SIZE]),
    "ggml_backend_reg_get_proc_address": (POINTER, [POINTER, ctypes.c_char_p]),
    "ggml_backend_dev_supports_op": (ctypes.c_bool, [POINTER, POINTER]),
    "ggml_backend_cpu_init": (POINTER, []),
    "ggml_backend_cpu_reg": (POINTER, []),
    "ggml_backend_cpu_set_n_threads": (None, [POINTER, INT]),
}


class Ggml:
    """The functions of `SIGNATURES` by their names without "ggml_"."""

    def __init__(self) -> None:
        """Load the libraries; raises `ContenderError` where a function is missing."""
        spec = importlib.util.find_spec("llama_cpp")
        assert spec is not None and spec.submodule_search_locations
        folder = Path(spec.submodule_search_locations[0]) / "lib"
        try:
            names = ("libggml-base.so", "libggml-cpu.so")
            libraries = [ctypes.CDLL(str(folder / name), ctypes.RTLD_GLOBAL) for name in names]
        except OSError as error:
            raise ContenderError(f"its libraries cannot be loaded: {error}") from None
        for name, (result, arguments) in SIGNATURES.items():
            found = next((lib for lib in libraries if hasattr(lib, name)), None)
            if found is None:
                raise ContenderError(f"this llama-cpp-python has no {name}; install 0.3.36")
            function = getattr(found, name)
            function.restype, function.argtypes = result, arguments
            setattr(self, name.removeprefix("ggml_"), function)

    def __getattr__(self, name: str) -> Any:
        """Raise for what is not in `SIGNATURES`; tells type checkers that the rest is there."""
        raise AttributeError(name)

    def repack_type(self) -> int | None:
        """Return the buffer type that repacks weights for this processor, or None."""
        register = self.backend_cpu_reg()
        address = self.backend_reg_get_proc_address(register, b"ggml_backend_dev_get_extra_bufts")
        if not address:
            return None
        listing = ctypes.CFUNCTYPE(ctypes.POINTER(POINTER), POINTER)(address)
        found = listing(self.backend_reg_dev_get(register, 0))
        index = 0
        while found and found[index]:
            if self.backend_buft_name(found[index]) == REPACK:
                return int(found[index])
            index += 1
        return None

    def random_rows(self, type_name: str, rows: int, inputs: int, seed: int = 0) -> Array:
        """Return valid quantized rows uint8 (rows, bytes of a row): random, some of them repeated."""
        kind = TYPES[type_name]
        different = min(rows, 64)
        values = np.random.default_rng(seed).standard_normal((different, inputs), np.float32)
        values *= np.float32(inputs**-0.5)
        if kind == TYPES["F32"]:
            packed = values.view(np.uint8)
        else:
            packed = np.zeros((different, self.row_size(kind, inputs)), np.uint8)
            self.quantize_chunk(
                kind, values.ctypes.data, packed.ctypes.data, 0, different, inputs, None
            )
        return np.tile(packed, (-(-rows // different), 1))[:rows]
