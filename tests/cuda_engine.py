"""Run in a child with the emulated GPU: an artifact's golden prompts, by TVM's own runtime for CUDA.

    python cuda_engine.py ARTIFACT

prints how its logits compare with the golden ones, by prefill and token by token, as the compile gate
does it: by the functions of model.so alone, with all tensors in the memory of the GPU.
"""

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from shiftadd_tvm import verification
from shiftadd_tvm.artifact import LIBRARY, Artifact
from shiftadd_tvm.runtime import library

CPU, CUDA, POOLED = 1, 2, 2
Array = np.ndarray


class Gpu:
    """The functions of an artifact, and memory of the GPU."""

    def __init__(self, artifact: Artifact) -> None:
        self.ffi = library.import_ffi()
        folder = library.find_runtime().parent
        for name in (library.RUNTIME, "libtvm_runtime_cuda.so"):
            ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)
        names = ("AllocWithScope", "CopyFromBytes", "CopyToBytes")
        self.allocate, self.write, self.read = (
            self.ffi.get_global_func(f"runtime.TVMTensor{name}") for name in names
        )
        module = self.ffi.load_module(str(artifact.path / LIBRARY))
        self.machine = module["vm_load_executable"]()
        self.machine["vm_initialization"](CUDA, 0, POOLED, CPU, 0, POOLED)
        tensors = [self.tensor(array) for array in artifact.load_parameters()]
        self.parameters = self.ffi.convert(tensors)

    def tensor(self, array: Array) -> Any:
        whole, device = np.ascontiguousarray(array), self.ffi.device("cuda", 0)
        made = self.allocate(self.ffi.Shape(whole.shape), self.ffi.dtype(str(whole.dtype)), device, None)
        self.write(made, ctypes.c_void_p(whole.ctypes.data), whole.nbytes)
        return made

    def array(self, tensor: Any) -> Array:
        found = np.empty(tuple(tensor.shape), str(tensor.dtype))
        self.read(tensor, ctypes.c_void_p(found.ctypes.data), found.nbytes)
        return found

    def call(self, name: str, *given: Any) -> Any:
        tensors = [self.tensor(g) if isinstance(g, np.ndarray) else g for g in given]
        return self.machine[name](*tensors, self.parameters)


def golden(artifact: Artifact, ids: Array) -> tuple[Array, Array]:
    """Return the logits (P, T, V) of ids (P, T) by prefill, and token by token."""
    gpu = Gpu(artifact)
    page, rows = artifact.number("limits", "page"), artifact.number("limits", "logit_rows")
    layers, heads, size = (artifact.number("model", k) for k in ("layers", "kv_heads", "head_dim"))
    pages = -(-ids.shape[1] // page)
    table = np.arange(pages, dtype=np.int32)[None]
    together, single = [], []
    for sequence in ids.astype(np.int32):
        cache = [
            gpu.tensor(np.zeros((layers, pages, heads, *last), np.float32))
            for last in ((size, page), (page, size))
        ]
        x = gpu.call("embed", sequence)
        states = gpu.array(gpu.call("prefill", x, *cache, table, np.zeros(1, np.int32)))
        parts = [states[i : i + rows] for i in range(0, len(states), rows)]
        together.append(np.concatenate([gpu.array(gpu.call("logits", part)) for part in parts]))
        steps = []
        for place in range(len(sequence)):
            length = np.array([place], np.int32)
            found = gpu.call("decode_b1", sequence[place : place + 1], *cache, table, length)
            steps.append(gpu.array(found)[0])
        single.append(np.stack(steps))
    return np.stack(together), np.stack(single)


def main(path: str) -> None:
    """Compare and print, for each of both ways."""
    artifact = Artifact(Path(path))
    ids, logits = artifact.golden()
    relative = verification.RELATIVE[artifact.activations()]
    found = [verification.compare(logits, part, relative) for part in golden(artifact, ids)]
    print(json.dumps([[c.passed, c.tokens_compared, c.max_logit_error] for c in found]))


if __name__ == "__main__":
    main(sys.argv[1])
