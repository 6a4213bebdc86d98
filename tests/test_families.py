"""Every family against transformers: one test code for all, by the family's own tiny config.

Unquantized parity: the checkpoint that transformers loads holds exactly the weights that a packed
model's planes and scales stand for, and look-ups hold activations in float32. So both compute the same
model, and what differs is the order of sums alone. Quantized: the same packed model with activations
held as it ships.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import kernels
import numpy as np
import pytest
import torch
import transformers
import tvm
from models import tiny_tensors, write_checkpoint
from tvm import relax
from tvm.ir import IRModule
from tvm.tirx import PrimFunc
from tvm_ffi import StructuralKey

from shiftadd_tvm import (
    backend,
    encoder_families,
    families,
    graph,
    parameters,
    pipeline,
    verification,
)
from shiftadd_tvm.backend import Backend
from shiftadd_tvm.dequantized import DequantizedModel
from shiftadd_tvm.errors import BadFileError, UnsupportedError
from shiftadd_tvm.ops.attention import PAGE
from shiftadd_tvm.packed import PackedModel, open_packed
from shiftadd_tvm.quantization import quantize
from shiftadd_tvm.settings import QuantizeSettings

TOKENS = 45  # more than the window of a tiny config, and no whole number of pages
FIRST = 29  # of a prefill in two chunks
PAGES = 4
TARGET = backend.load(kernels.HERE[0])
# a preset of each target family that does not run here: its code is generated
ELSEWHERE = tuple(name for name in ("arm", "cuda-sm90") if name in backend.presets())
Note = Callable[[str, object], None]
UNQUANTIZED = ("embed", "prefill", "logits", "decode_b1")
QUANTIZED = ("decode_b1",)


@dataclasses.dataclass(frozen=True)
class Case:
    """A family's tiny model: packed, and in transformers with the weights that it stands for."""

    name: str
    packed: PackedModel
    ids: np.ndarray
    expected: np.ndarray  # transformers' logits of every token, (TOKENS, vocabulary)


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


def _module(
    packed: PackedModel, target: Backend, activations: str, names: tuple[str, ...]
) -> tuple[IRModule, list[parameters.Parameter]]:
    """Return some functions of a model's module, and its parameters."""
    groups = parameters.groups(packed, target.rows, activations)
    found = parameters.parameters(packed, groups, target.lanes, target.rows)
    on_gpu = bool(target.device)
    module = graph.build(packed, found, groups, activations, (1,), together=on_gpu)
    return relax.transform.DeadCodeElimination(list(names))(module), found


class Machine:
    """Some functions of a packed model's module, compiled, with a cache for one sequence."""

    def __init__(
        self, packed: PackedModel, target: Backend, activations: str, names: tuple[str, ...]
    ) -> None:
        module, found = _module(packed, target, activations, names)
        executable, _ = pipeline.build(module, target)
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


def compare(found: np.ndarray, case: Case, activations: str, note: Note) -> None:
    """Hold logits to transformers', and note the error for docs/models.md."""
    largest = float(np.abs(case.expected).max())
    error = float(np.abs(found - case.expected).max()) / largest
    for key, value in (("family", case.name), ("preset", TARGET.name), ("error", f"{error:.0e}")):
        note(key, value)
    assert error <= verification.RELATIVE[activations]


def test_decode_equals_transformers(
    case: Case, unquantized: Machine, record_property: Note
) -> None:
    found = np.stack([unquantized.step(token, at) for at, token in enumerate(case.ids)])
    compare(found, case, "float32", record_property)


def test_prefill_equals_transformers(
    case: Case, unquantized: Machine, record_property: Note
) -> None:
    parts = (case.ids[:FIRST], 0), (case.ids[FIRST:], FIRST)
    found = np.concatenate([unquantized.prefill(*part) for part in parts])
    compare(found, case, "float32", record_property)


def test_quantized_decode_is_close(case: Case, record_property: Note) -> None:
    machine = Machine(case.packed, TARGET, "int16", QUANTIZED)
    found = np.stack([machine.step(token, at) for at, token in enumerate(case.ids)])
    compare(found, case, "int16", record_property)


@pytest.fixture(scope="module")
def generated() -> dict[str, set[StructuralKey]]:
    """By their presets, the kernels of which code was generated for the families before."""
    return {preset: set() for preset in ELSEWHERE}


def new_kernels(module: IRModule, known: set[StructuralKey]) -> IRModule:
    """Return a lowered module without the kernels that are `known`, and add the others to those."""
    kept = {}
    for variable, function in module.functions_items():
        if isinstance(function, PrimFunc):
            key = StructuralKey(function.without_attr("global_symbol"))
            if key in known:
                continue
            known.add(key)
        kept[variable] = function
    return IRModule(kept, attrs=module.attrs)


@pytest.mark.parametrize("preset", ELSEWHERE)
def test_code_is_generated(
    case: Case, preset: str, generated: dict[str, set[StructuralKey]], record_property: Note
) -> None:
    """Families have many kernels in common: code is generated once of each."""
    target = backend.load(preset)
    module, _ = _module(case.packed, target, "int16", QUANTIZED)
    lowered, kernels = pipeline.lower(module, target)
    executable = pipeline.generate(new_kernels(lowered, generated[preset]), target)
    assert kernels["scheduled"] and executable.stats()
    record_property("family", case.name)
    record_property("preset", preset)


def test_the_table_has_every_family() -> None:
    text = (Path(__file__).parent.parent / "docs" / "models.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", text, re.MULTILINE))
    assert list(rows) == [*families.names(), *encoder_families.names()]
    for name, cells in rows.items():
        assert all(cell.strip() for cell in cells.split("|")), name


# key and value that no family's config may have, and what the refusal names
HOSTILE = {
    "an unknown activation": ({"hidden_act": "tan", "hidden_activation": "tan"}, "tan"),
    "a rope that changes": ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
    "negative layers": ({"num_hidden_layers": -1, "n_layer": -1}, "-1"),
    "no heads": ({"num_attention_heads": 0, "n_head": 0}, "heads"),
    "a vocabulary of words": ({"vocab_size": "many"}, "many"),
}


@pytest.mark.parametrize("name", families.names())
def test_hostile_configs_are_refused_by_name(name: str) -> None:
    config = families.load({"model_type": name}).tiny_config()
    for key in [key for key in config if key not in ("model_type", "architectures")]:
        for value in ({}, "x", -3, [1.5], float("nan")):
            try:
                decoder = families.read_config({**config, key: value}, "config.json")
                decoder.tensor_shapes()
            except (BadFileError, UnsupportedError) as error:
                assert str(error).startswith("config.json: ")
    for changed, named in HOSTILE.values():
        known = {key: value for key, value in changed.items() if key in config}
        if known:
            with pytest.raises((BadFileError, UnsupportedError), match=re.escape(named)):
                families.read_config({**config, **known})
