"""The C ABI of libshiftadd (cpp/include/shiftadd/shiftadd.h) for ctypes; `engine.py` builds on it."""

import contextlib
import ctypes
import functools
import importlib.util
import os
from ctypes import POINTER, c_char_p, c_double, c_float, c_int32, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import numpy as np

from shiftadd_tvm.cuda import toolkit
from shiftadd_tvm.errors import BadFileError, ShiftAddError, UnsupportedError, UsageError
from shiftadd_tvm.runtime import library as tvm_library

OVERRIDE = "SHIFTADD_LIBRARY"  # a path to libshiftadd.so, instead of the one in the package
LIBRARY = Path(__file__).parent / "lib" / "libshiftadd.so"
ABI = 0  # SHIFTADD_ABI_VERSION

# SHIFTADD_FLOAT32 and so on, by number
DTYPES = tuple(
    map(
        np.dtype,
        (
            *("float32", "float16", "int8", "int16", "int32", "int64"),
            *("uint8", "uint16", "uint32", "uint64", "bool", "float64"),
        ),
    )
)
ERRORS: dict[int, type[Exception]] = {
    1: RuntimeError,
    2: UsageError,
    3: UnsupportedError,
    4: BadFileError,
    5: UsageError,
    6: InterruptedError,
}

Array = np.ndarray


class ModelParams(ctypes.Structure):
    """shiftadd_model_params."""

    _fields_ = [
        ("threads", c_int32),
        ("sequences", c_int32),
        ("check_hashes", c_int32),
        ("load", c_int32),
        ("reserved", c_int32 * 12),
    ]


class ModelInfo(ctypes.Structure):
    """shiftadd_model_info."""

    _fields_ = [
        ("kind", c_char_p),
        ("context", c_int32),
        ("vocabulary", c_int32),
        ("bos", c_int32),
        ("eos", POINTER(c_int32)),
        ("eos_count", c_size_t),
        ("chunk", c_int32),
        ("batches", POINTER(c_int32)),
        ("batch_count", c_size_t),
        ("threads", c_int32),
        ("free_pages", c_int32),
        ("page", c_int32),
        ("parameter_bytes", c_int64),
    ]


class SamplingParams(ctypes.Structure):
    """shiftadd_sampling."""

    _fields_ = [
        ("temperature", c_float),
        ("top_k", c_int32),
        ("top_p", c_float),
        ("repetition_penalty", c_float),
        ("seed", c_int64),
    ]


class Tensor(ctypes.Structure):
    """shiftadd_tensor."""

    _fields_ = [
        ("name", c_char_p),
        ("dtype", ctypes.c_int),
        ("ndim", c_int32),
        ("shape", POINTER(c_int64)),
        ("data", c_void_p),
    ]


LOGITS_CALLBACK = ctypes.CFUNCTYPE(c_int32, c_void_p, c_size_t, c_size_t, c_void_p)
PROFILE_CALLBACK = ctypes.CFUNCTYPE(None, c_char_p, c_double, c_void_p)

_INTS = POINTER(c_int32)
# Of the functions that return a status, the arguments.
_ARGUMENTS: dict[str, list[Any]] = {
    "load_runtime": [c_char_p, c_char_p],
    "model_load": [c_char_p, POINTER(ModelParams), POINTER(c_void_p)],
    "model_get_info": [c_void_p, POINTER(ModelInfo)],
    "model_profile": [c_void_p, PROFILE_CALLBACK, c_void_p],
    "session_create": [c_void_p, POINTER(c_void_p)],
    "session_reset": [c_void_p],
    "session_truncate": [c_void_p, c_size_t],
    "session_fork": [c_void_p, POINTER(c_void_p)],
    "session_tokens": [c_void_p, POINTER(_INTS), POINTER(c_size_t)],
    "prefill": [c_void_p, _INTS, c_size_t],
    "score": [c_void_p, _INTS, c_size_t, LOGITS_CALLBACK, c_void_p],
    "decode": [c_void_p, c_int32],
    "decode_batch": [POINTER(c_void_p), _INTS, c_size_t],
    "logits_result": [c_void_p, POINTER(c_void_p)],
    "sample": [c_void_p, POINTER(SamplingParams), c_int32, _INTS],
    "function_signature": [
        *(c_void_p, c_char_p, POINTER(POINTER(Tensor)), POINTER(c_size_t)),
        *(POINTER(POINTER(Tensor)), POINTER(c_size_t)),
    ],
    "call": [c_void_p, c_char_p, POINTER(Tensor), c_size_t, POINTER(c_void_p)],
    "result_tensor": [c_void_p, c_size_t, POINTER(Tensor)],
}


@functools.cache
def load() -> Any:
    """Return libshiftadd with its functions declared; raise `UnsupportedError` where it is missing."""
    path = Path(os.environ.get(OVERRIDE) or LIBRARY)
    if not path.is_file():
        raise UnsupportedError(
            f"{path} does not exist; build it with `python -m shiftadd_tvm.runtime.native_build`, or "
            "install the package (make install)."
        )
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise UnsupportedError(f"{path} cannot be loaded: {error}.") from None
    if library.shiftadd_abi_version() != ABI:
        raise UnsupportedError(
            f"{path} has ABI {library.shiftadd_abi_version()}, expected {ABI}; build it again."
        )
    library.shiftadd_last_error.restype = c_char_p
    for name, arguments in _ARGUMENTS.items():
        getattr(library, f"shiftadd_{name}").argtypes = arguments
    for name in ("model", "session", "result"):
        free = getattr(library, f"shiftadd_{name}_free")
        free.argtypes, free.restype = [c_void_p], None
    library.shiftadd_session_cancel.argtypes = [c_void_p]
    library.shiftadd_session_cancel.restype = None
    library.shiftadd_result_count.argtypes = [c_void_p]
    library.shiftadd_result_count.restype = c_size_t
    return library


@functools.cache
def load_runtime() -> None:
    """Load TVM's two libraries from where their packages have them."""
    runtime = tvm_library.find_runtime()
    spec = importlib.util.find_spec("tvm_ffi")
    folders = list(spec.submodule_search_locations or []) if spec else []
    found = [Path(f) / "lib" / "libtvm_ffi.so" for f in folders]
    ffi = next((str(path).encode() for path in found if path.is_file()), None)
    call("load_runtime", str(runtime).encode(), ffi)


@functools.cache
def load_cuda() -> None:
    """Load CUDA's runtime, which TVM's runtime for CUDA is linked to, where it is found.

    The loader's own comes first; Python's package of it lies where the loader does not look. Without
    any, libshiftadd says what it misses.
    """
    for place in (toolkit.RUNTIME, toolkit.find_runtime()):
        with contextlib.suppress(OSError):
            if place is not None:
                ctypes.CDLL(str(place), mode=ctypes.RTLD_GLOBAL)
                return


def call(name: str, *arguments: Any) -> None:
    """Call the function shiftadd_<name>; raise the error that its status means."""
    library = load()
    status = getattr(library, f"shiftadd_{name}")(*arguments)
    if status:
        sentence = library.shiftadd_last_error().decode("utf-8", "replace")
        raise ERRORS.get(status, ShiftAddError)(sentence)


def create(name: str, *arguments: Any) -> c_void_p:
    """Call a function whose last argument takes a new handle; return the handle."""
    handle = c_void_p()
    call(name, *arguments, ctypes.byref(handle))
    return handle


def view(address: int | None, shape: tuple[int, ...], dtype: np.dtype, owner: object) -> Array:
    """Return memory as an array that keeps `owner` alive."""
    count = int(np.prod(shape, dtype=np.int64))
    if not count or address is None:
        return np.empty(shape, dtype)
    memory = (ctypes.c_char * (count * dtype.itemsize)).from_address(address)
    memory.owner = owner  # type: ignore[attr-defined]
    return np.frombuffer(memoryview(memory), dtype).reshape(shape)


class Result:
    """The output tensors of a call; arrays of it keep it alive."""

    def __init__(self, handle: c_void_p) -> None:
        """Own a handle shiftadd_result*."""
        self._handle = handle

    def __del__(self) -> None:
        """Free the tensors."""
        load().shiftadd_result_free(self._handle)

    def arrays(self) -> list[Array]:
        """Return the outputs, zero-copy."""
        found = []
        for index in range(load().shiftadd_result_count(self._handle)):
            tensor = Tensor()
            call("result_tensor", self._handle, index, ctypes.byref(tensor))
            shape = tuple(tensor.shape[: tensor.ndim])
            found.append(view(tensor.data, shape, DTYPES[tensor.dtype], self))
        return found
