"""llama.cpp's matrix product as a peer of one linear: ggml_mul_mat of one type, plain or repacked.

All copies of the weight stand in one graph, so that they are cold and one run's cost is spread.
"""

import time
from typing import Any

import numpy as np

from shiftadd_tvm.baselines.ggml import TYPES, Ggml, InitParameters
from shiftadd_tvm.benchmark.turns import ContenderError, Fields, serve

SPARE = 16  # tensors and graph nodes beyond those of the copies

Array = np.ndarray


class Products:
    """`count` products of one activation with a weight each."""

    def __init__(self, ggml: Ggml, request: Fields) -> None:
        """Build the graph and its weights; raises `ContenderError` for what ggml cannot do."""
        outputs, inputs = request["shape"]
        kind = TYPES[request["type"]]
        if inputs % ggml.blck_size(kind):
            raise ContenderError(
                f"its blocks of {ggml.blck_size(kind)} do not divide {inputs} inputs"
            )
        self.nbytes = outputs * ggml.row_size(kind, inputs)
        self.count = -(-request["cold_bytes"] // self.nbytes)
        self._ggml = ggml
        self._backend = ggml.backend_cpu_init()
        ggml.backend_cpu_set_n_threads(self._backend, request["threads"])
        plain = ggml.backend_get_default_buffer_type(self._backend)
        buffer_type = ggml.repack_type() if request["repacked"] else plain
        if buffer_type is None:
            raise ContenderError("this build of ggml repacks no weights")
        held, work = self._context(), self._context()
        weights = [ggml.new_tensor_2d(held, kind, inputs, outputs) for _ in range(self.count)]
        ggml.backend_alloc_ctx_tensors_from_buft(held, buffer_type)
        self._outputs = outputs
        self._x = ggml.new_tensor_2d(work, TYPES["F32"], inputs, 1)
        self._results = [ggml.mul_mat(work, weight, self._x) for weight in weights]
        device = ggml.backend_reg_dev_get(ggml.backend_cpu_reg(), 0)
        if not ggml.backend_dev_supports_op(device, self._results[0]):
            raise ContenderError(f"{request['type']} has no repacked form on this processor")
        ggml.backend_alloc_ctx_tensors_from_buft(work, plain)
        self._graph = ggml.new_graph_custom(work, self.count + SPARE, False)
        for result in self._results:
            ggml.build_forward_expand(self._graph, result)
        rows = ggml.random_rows(request["type"], outputs, inputs)
        for weight in weights:
            ggml.backend_tensor_set(weight, rows.ctypes.data, 0, rows.nbytes)
        x = np.random.default_rng(0).standard_normal(inputs, np.float32)
        ggml.backend_tensor_set(self._x, x.ctypes.data, 0, x.nbytes)

    def _context(self) -> int:
        count, ggml = self.count + SPARE, self._ggml
        size = ggml.tensor_overhead() * count + ggml.graph_overhead_custom(count, False)
        return int(ggml.init(InitParameters(size, None, True)))

    def call(self) -> float:
        """Return the seconds of one product."""
        begin = time.perf_counter()
        status = self._ggml.backend_graph_compute(self._backend, self._graph)
        elapsed = time.perf_counter() - begin
        if status:
            raise ContenderError(f"ggml_backend_graph_compute returned {status}")
        return elapsed / self.count

    def outputs(self) -> list[Array]:
        """Return what each product gave, float32 (outputs,)."""
        found = [np.empty(self._outputs, np.float32) for _ in self._results]
        for result, values in zip(self._results, found, strict=True):
            self._ggml.backend_tensor_get(result, values.ctypes.data, 0, values.nbytes)
        return found


def prepare(request: Fields) -> tuple[Fields, dict[str, Any]]:
    """Return info and the action `call`, which gives the seconds of one linear."""
    products = Products(Ggml(), request)
    return {"weight_bytes": products.nbytes}, {"call": products.call}


if __name__ == "__main__":
    serve(prepare)
