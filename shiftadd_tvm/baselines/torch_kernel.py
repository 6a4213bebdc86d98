"""torch in bfloat16 as a peer of one linear: `linear` over weights that are rotated."""

import time
from typing import Any

import torch

from shiftadd_tvm.benchmark.turns import Fields, serve


def prepare(request: Fields) -> tuple[Fields, dict[str, Any]]:
    """Return info and the action `call`, which gives the seconds of one linear."""
    torch.set_num_threads(request["threads"])
    outputs, inputs = request["shape"]
    nbytes = 2 * outputs * inputs
    count = -(-request["cold_bytes"] // nbytes)
    x = torch.randn(1, inputs, dtype=torch.bfloat16)
    weights = torch.randn(outputs, inputs).bfloat16().repeat(count, 1, 1)

    def call() -> float:
        with torch.inference_mode():
            begin = time.perf_counter()
            for weight in weights:
                torch.nn.functional.linear(x, weight)
            return (time.perf_counter() - begin) / count

    return {"weight_bytes": nbytes, "version": torch.__version__}, {"call": call}


if __name__ == "__main__":
    serve(prepare)
