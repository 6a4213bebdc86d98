"""llama.cpp as a peer of a whole model: the same shape with random weights of its nearest type.

Runs by llama.cpp's own low-level calls, as its own bench does: no tokenizer, no sampling. Weights that
it can repack for this processor are repacked (its default), the rest are mapped; its cache is float16.
"""

import ctypes
import time
from collections import Counter
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from shiftadd_tvm.baselines import random_gguf
from shiftadd_tvm.baselines.ggml import Ggml
from shiftadd_tvm.benchmark.turns import ContenderError, Fields, serve

SPARE = 8  # positions beyond those that are asked for


class _Llama:
    """A loaded model with one sequence."""

    def __init__(self, path: Path, request: Fields) -> None:
        llama_cpp.llama_backend_init()
        self._prompt = np.random.default_rng(0).integers(
            0, request["vocabulary"], request["prompt_tokens"], np.int32
        )
        self._model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = request["prompt_tokens"] + request["decoded_tokens"] + SPARE
        settings.n_batch = max(settings.n_ubatch, request["prompt_tokens"])
        settings.n_threads = settings.n_threads_batch = request["threads"]
        self._context = self._model and llama_cpp.llama_init_from_model(self._model, settings)
        if not self._context:
            raise ContenderError("llama.cpp did not load the model; it may need more memory")
        self.prefill()

    def _run(self, tokens: np.ndarray) -> float:
        count = len(tokens)
        ids = (ctypes.c_int32 * count)(*tokens.tolist())  # the batch holds a bare pointer to it
        batch = llama_cpp.llama_batch_get_one(ids, count)
        begin = time.perf_counter()
        status = llama_cpp.llama_decode(self._context, batch)
        llama_cpp.llama_synchronize(self._context)
        elapsed = time.perf_counter() - begin
        if status:
            raise ContenderError(f"llama_decode returned {status}")
        return elapsed

    def prefill(self) -> float:
        """Return the seconds that the prompt takes in an empty cache."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), False)
        return self._run(self._prompt)

    def decode(self, tokens: int) -> list[float]:
        """Return the seconds of each of so many further tokens."""
        return [self._run(self._prompt[:1]) for _ in range(tokens)]


def prepare(request: Fields) -> tuple[Fields, dict[str, Any]]:
    """Return info and the actions; the model's file is gone again once it is loaded."""
    ggml = Ggml()
    kind = request["type"]
    found = random_gguf.tensors(ggml, request, kind)
    path = Path(request["folder"]) / f"{kind}.gguf"
    try:
        random_gguf.write(path, ggml, request, found)
        llama = _Llama(path, request)
    finally:
        path.unlink(missing_ok=True)
    counts = Counter(used for used, _, _ in found.values())
    info = {
        "weight_bytes": random_gguf.bytes_read(ggml, found),
        "note": "matrices: " + ", ".join(f"{count} {used}" for used, count in counts.items()),
        "build": llama_cpp.llama_print_system_info().decode().strip(),
    }
    return info, {"prefill": llama.prefill, "decode": llama.decode}


if __name__ == "__main__":
    serve(prepare)
