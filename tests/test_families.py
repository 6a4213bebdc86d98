"""Every family against transformers: one test code for all, by the family's own tiny config.

Unquantized parity: the checkpoint that transformers loads holds exactly the weights that a packed
model's planes and scales stand for, and look-ups hold activations in float32. So both compute the same
model, and what differs is the order of sums alone. Quantized: the same packed model with activations
held as it ships.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import kernels
import numpy as np
import pytest
import torch
import transformers
import tvm
from models import tiny_tensors, write_checkpoint
from tvm import relax

from shiftadd_tvm import backend, families, graph, parameters, pipeline, verification
from shiftadd_tvm.backend import Backend
from shiftadd_tvm.dequantized import DequantizedModel
from shiftadd_tvm.ops.attention import PAGE
from shiftadd_tvm.packed import PackedModel, open_packed
from shiftadd_tvm.quantization import quantize
from shiftadd_tvm.settings import QuantizeSettings

TOKENS = 45  # more than the window of a tiny config, and no whole number of pages
FIRST = 29  # of a prefill in two chunks
PAGES = 4
TARGET = backend.load(kernels.HERE[0])
UNQUANTIZED = ("embed", "prefill", "logits", "decode_b1")
QUANTIZED = ("decode_b1",)


@dataclasses.dataclass(frozen=True)
class Case:
    """A family's tiny model: packed, and in transformers with the weights that it stands for."""

    name: str
    packed: PackedModel
    ids: np.ndarray
    expected: np.ndarray  # transformers' logits of every token, (TOKENS, vocabulary)

    def tolerance(self, activations: str) -> float:
        return verification.RELATIVE[activations] * float(np.abs(self.expected).max())


@pytest.fixture(scope="module", params=families.names())
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp(request.param)
    config = families.load({"model_type": request.param}).tiny_config()
    write_checkpoint(folder / "source", config, tiny_tensors(config))
    quantize(folder / "source", folder / "packed", QuantizeSettings(bits=3))
    packed = open_packed(folder / "packed")
    same = DequantizedModel(packed)
    tensors = {name: same.read(name) for name in packed.decoder.tensor_shapes()}
    write_checkpoint(folder / "same", config, tensors)
    ids = np.random.default_rng(1).integers(3, packed.decoder.vocabulary, TOKENS).astype(np.int32)
    return Case(request.param, packed, ids, _logits(folder / "same", ids))


def _logits(folder: Path, ids: np.ndarray) -> np.ndarray:
    """Return transformers' logits of a whole sequence, float32 (T, vocabulary)."""
    model, told = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not told["missing_keys"] and not told["unexpected_keys"], told
    with torch.inference_mode():
        found: np.ndarray = model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0].numpy()
    return found


class Machine:
    """Some functions of a packed model's module, compiled, with a cache for one sequence."""

    def __init__(
        self, packed: PackedModel, target: Backend, activations: str, names: tuple[str, ...]
    ) -> None:
        groups = parameters.groups(packed, target.rows, activations)
        found = parameters.parameters(packed, groups, target.lanes, target.rows)
        module = graph.build(packed, found, groups, activations, (1,))
        module = relax.transform.DeadCodeElimination(list(names))(module)
        executable, self.kernels = pipeline.build(module, target)
        self._machine = relax.VirtualMachine(executable, tvm.cpu())
        self._bundle = [_tensor(parameter.read()) for parameter in found]
        decoder = packed.decoder
        head = (decoder.layers, PAGES, decoder.kv_heads)
        sides = (decoder.head_dim, PAGE), (PAGE, decoder.head_dim)
        self._cache = [_tensor(np.full(head + side, 1e9, np.float32)) for side in sides]
        self._cache.append(_tensor(np.array([[2, 0, 3, 1]], np.int32)))

    def step(self, token: int, position: int) -> np.ndarray:
        """Return the logits (vocabulary,) of the token at `position`."""
        ids, length = (_tensor(np.array([value], np.int32)) for value in (token, position))
        logits: np.ndarray = self._machine["decode_b1"](
            ids, *self._cache, length, self._bundle
        ).numpy()
        return logits[0]

    def prefill(self, ids: np.ndarray, start: int) -> np.ndarray:
        """Return the logits (n, vocabulary) of tokens from position `start` on."""
        length = _tensor(np.array([start], np.int32))
        x = self._machine["embed"](_tensor(ids), self._bundle)
        hidden = self._machine["prefill"](x, *self._cache, length, self._bundle)
        logits: np.ndarray = self._machine["logits"](hidden, self._bundle).numpy()
        return logits


def _tensor(array: np.ndarray) -> object:
    return tvm.runtime.tensor(np.ascontiguousarray(array))


@pytest.fixture(scope="module")
def unquantized(case: Case) -> Iterator[Machine]:
    yield Machine(case.packed, TARGET, "float32", UNQUANTIZED)


def test_decode_equals_transformers(case: Case, unquantized: Machine) -> None:
    found = np.stack([unquantized.step(token, at) for at, token in enumerate(case.ids)])
    np.testing.assert_allclose(found, case.expected, 0, case.tolerance("float32"))


def test_prefill_equals_transformers(case: Case, unquantized: Machine) -> None:
    parts = (case.ids[:FIRST], 0), (case.ids[FIRST:], FIRST)
    found = np.concatenate([unquantized.prefill(*part) for part in parts])
    np.testing.assert_allclose(found, case.expected, 0, case.tolerance("float32"))


def test_quantized_decode_is_close(case: Case) -> None:
    machine = Machine(case.packed, TARGET, "int16", QUANTIZED)
    found = np.stack([machine.step(token, at) for at, token in enumerate(case.ids)])
    np.testing.assert_allclose(found, case.expected, 0, case.tolerance("int16"))
