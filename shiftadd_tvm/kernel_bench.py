"""Our part in the bench of single operators: the decode linear as the graph emits it, cold.

Run as a process of its own by `benchmark/kernels.py`. For each shape a function is compiled that holds
several linears side by side, each with weights of its own, which read one activation. `layers.linears`
emits for each what it emits in a model (scale the activation, build its tables, look up and add) but
for the rotation, which belongs to a whole input group. So the calls between operators cost what they
cost in a model, Python's own call is spread over many linears, and every weight comes from memory:
sets of weights are rotated that have `memory.cold_bytes()` together.
"""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import tvm
from tvm import relax

from shiftadd_tvm import backend as backends
from shiftadd_tvm import graph, layers, parameters, pipeline
from shiftadd_tvm.backend import Backend
from shiftadd_tvm.benchmark import memory
from shiftadd_tvm.benchmark.turns import Fields, serve
from shiftadd_tvm.errors import UnsupportedError
from shiftadd_tvm.ops import read_memory
from shiftadd_tvm.parameters import Parameter
from shiftadd_tvm.runtime import library
from shiftadd_tvm.settings import QuantizeSettings
from shiftadd_tvm.synthetic import SyntheticModel
from shiftadd_tvm.tuning.log import open_logs

TOGETHER = 32  # linears of one function at most
# what `--scales` means, as settings: a row's group of 128 inputs has one power of two
SCALES: dict[str, dict[str, Any]] = {
    "separable": {},
    "row-group": {"scale_format": "row-group", "block_terms": 1},
}
LINEAR = ".self_attn.o_proj"  # whose outputs and inputs can be chosen freely
FUNCTION = "linears"

Array = np.ndarray


def linear_model(
    outputs: int, inputs: int, bits: int, count: int, scales: str = "separable"
) -> SyntheticModel:
    """Return a model with `count` linears (outputs, inputs): the o_proj of its layers; `scales` is one
    of `SCALES`."""
    config: dict[str, object] = {
        **{"model_type": "llama", "num_hidden_layers": count, "intermediate_size": 8},
        **{"hidden_size": outputs, "head_dim": inputs, "vocab_size": 8},
        **{"num_attention_heads": 1, "num_key_value_heads": 1},
    }
    chosen = SCALES[scales]
    return SyntheticModel(
        config, QuantizeSettings(bits=bits, max_rotation=0, embedding_bits=8, **chosen)
    )


def linear_parameters(
    model: SyntheticModel, backend: Backend, activations: str
) -> tuple[dict[str, layers.Group], list[Parameter]]:
    """Return the input groups of a `linear_model`, and the parameters of its linears, as the graph
    packs them."""
    groups = parameters.groups(model, backend.rows, activations)
    found = parameters.parameters(model, groups, backend.lanes, backend.rows)
    return groups, [p for p in found if f"{LINEAR}." in p.name]


def build(
    model: SyntheticModel,
    groups: dict[str, layers.Group],
    found: list[Parameter],
    backend: Backend,
    activations: str,
) -> tuple[Any, Mapping[str, int]]:
    """Return the virtual machine of `FUNCTION`, x (1, K) and `found` -> the outputs of all linears,
    and of the memory probes; and how many kernels came from where."""
    builder = layers.Builder({p.name: relax.TensorType(p.shape, p.dtype) for p in found})
    names = [name for name in model.linears() if name.endswith(LINEAR)]
    x = relax.Var("x", relax.TensorType((1, model.decoder.head_dim), "float32"))
    with builder.function(FUNCTION, [x]) as result:
        linear = lambda name: layers.linears(builder, x, groups[name], activations, many=False)[0]
        result(relax.Tuple([linear(name).tensor for name in names]))
    graph.add_read_memory(builder)
    logs = open_logs(backend.name)  # as in compiling
    executable, counts = pipeline.build(builder.blocks.finalize(), backend, logs=logs)
    return relax.VirtualMachine(executable, tvm.cpu()), counts


class ColdLinears:
    """One shape's compiled linears, and sets of weights that are rotated."""

    def __init__(
        self,
        shape: tuple[int, int],
        bits: int,
        backend: Backend,
        cold: int,
        activations: str,
        scales: str = "separable",
    ) -> None:
        """Compile, and fill `cold` bytes with weights."""
        _, one = linear_parameters(linear_model(*shape, bits, 1, scales), backend, activations)
        self.nbytes = sum(_nbytes(p) for p in one)  # planes and scales of one linear
        wanted = -(-cold // self.nbytes)
        self.count = min(wanted, TOGETHER)
        model = linear_model(*shape, bits, self.count, scales)
        groups, found = linear_parameters(model, backend, activations)
        self.machine, self.kernels = build(model, groups, found, backend, activations)
        arrays = [p.read() for p in found]
        self._ffi = library.import_ffi()
        self._sets = [self._copied(arrays) for _ in range(-(-wanted // self.count))]
        x = memory.huge_zeros(shape[1] * 4).view(np.float32).reshape(1, -1)
        x[...] = np.random.default_rng(0).standard_normal(x.shape)
        self._x = self._ffi.from_dlpack(x)
        self._next = 0

    def _copied(self, arrays: list[Array]) -> Any:
        sizes = [-(-array.nbytes // 64) * 64 for array in arrays]
        raw, begin, tensors = memory.huge_zeros(sum(sizes)), 0, []
        for array, size in zip(arrays, sizes, strict=True):
            place = raw[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
            place[...] = array
            tensors.append(self._ffi.from_dlpack(place))
            begin += size
        return self._ffi.convert(tensors)

    def outputs(self) -> list[Array]:
        """Return the outputs (1, N) of the next set's linears."""
        weights = self._sets[self._next % len(self._sets)]
        self._next += 1
        return [y.numpy() for y in self.machine[FUNCTION](self._x, weights)]

    def call(self) -> float:
        """Return the seconds of one linear: those of a call by the number of its linears."""
        weights = self._sets[self._next % len(self._sets)]
        self._next += 1
        begin = time.perf_counter()
        self.machine[FUNCTION](self._x, weights)
        return (time.perf_counter() - begin) / self.count


def _nbytes(parameter: Parameter) -> int:
    return int(np.prod(parameter.shape)) * np.dtype(parameter.dtype).itemsize


def _prepare(request: Fields) -> tuple[Fields, dict[str, Any]]:
    library.configure_threads(request["threads"])
    backend = backends.load(request["target"])
    if missing := backend.missing_features():
        raise UnsupportedError(
            f"Target {backend.name} does not run here, its kernels cannot be timed: this machine lacks "
            f"{', '.join(missing)} (shiftadd-tvm targets)."
        )
    shape, bits = tuple(request["shape"]), request["bits"]
    formats = (request["activations"], request["scales"])
    linears = ColdLinears(shape, bits, backend, request["cold_bytes"], *formats)
    ffi = library.import_ffi()
    words = memory.probe_words(request["probe_bytes"])
    views = memory.probe_views(words, read_memory.SHAPES, request["threads"])
    tensors = {name: (ffi.from_dlpack(view), view.nbytes) for name, view in views.items()}

    def probe() -> dict[str, float]:
        rates = {}
        for name, (tensor, nbytes) in tensors.items():
            begin = time.perf_counter()
            linears.machine[name](tensor)
            rates[name] = nbytes / (time.perf_counter() - begin)
        return rates

    info = {"weight_bytes": linears.nbytes, "kernels": dict(linears.kernels)}
    return info, {"probe": probe, "call": linears.call}


if __name__ == "__main__":
    serve(_prepare)
