"""Every encoder family against transformers: one test code for all, by the family's own tiny config.

The graph that is written of a checkpoint computes what transformers does, for every class whose
checkpoints a family reads. Compiled with look-ups of float32 activations, the packed model computes what
transformers does with the weights that it stands for; with int16 activations, almost that.
"""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import encoder_models
import kernels
import numpy as np
import pytest
import tvm
from command import call_here, fails
from tvm import relax

import shiftadd_tvm
from shiftadd_tvm import (
    backend,
    bcq,
    encoder_families,
    encoder_plan,
    function_compiler,
    onnx_runner,
    pipeline,
    workflow,
)
from shiftadd_tvm.checkpoint import open_checkpoint
from shiftadd_tvm.compile_settings import CompileSettings
from shiftadd_tvm.errors import BadFileError, UnsupportedError
from shiftadd_tvm.function_graph import FUNCTION, FunctionGraph
from shiftadd_tvm.onnx_packed import WEIGHT, PackedGraph
from shiftadd_tvm.onnx_quantization import GraphPlan
from shiftadd_tvm.settings import QuantizeSettings
from shiftadd_tvm.verification import RELATIVE

Config = dict[str, object]
Tensors = dict[str, np.ndarray]
Note = Callable[[str, object], None]

BATCHES = (1, 3)
FLOATS = 1e-5  # of sums in another order
TARGET = backend.load(kernels.HERE[0])
SETTINGS = QuantizeSettings(bits=3, method="alternating")


def variants() -> list[tuple[str, Config]]:
    """Return every class of every family, and what its config may say beside that of `tiny_config`."""
    found: list[tuple[str, Config]] = []
    for name in encoder_families.names():
        architectures = encoder_families.load(name).ARCHITECTURES
        found += [(name, {"architectures": [architecture]}) for architecture in architectures]
    found.append(("vit", {"qkv_bias": False, "hidden_act": "gelu_pytorch_tanh", "num_channels": 1}))
    found.append(("dinov2", {"use_swiglu_ffn": True, "patch_size": [6, 4]}))
    return found


def result(*arguments: object, cwd: Path) -> dict[str, Any]:
    """Return the JSON object of a command that runs in this process."""
    child = call_here(*arguments, "--json", cwd=cwd)
    assert child.returncode == 0, child.stderr
    found: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    return found


def run(plan: GraphPlan, given: Tensors) -> Tensors:
    """Return what a plan's graph computes with the weights of the checkpoint."""
    weights = {n + WEIGHT: np.ascontiguousarray(w.T) for n, w in plan.prepared.weights.items()}
    return onnx_runner.run(plan.prepared.model, {**given, **weights})


@pytest.mark.parametrize(
    ("name", "changed"), variants(), ids=[f"{n}-{next(iter(c.values()))}" for n, c in variants()]
)
def test_the_graph_equals_transformers(name: str, changed: Config, tmp_path: Path) -> None:
    config = {**encoder_families.load(name).tiny_config(), **changed}
    encoder_models.write(tmp_path, config, encoder_models.tensors(config))
    given = encoder_models.inputs(config, 3)
    found = run(encoder_plan.plan(open_checkpoint(tmp_path), SETTINGS), given)
    expected = encoder_models.outputs(tmp_path, given)
    assert encoder_models.error(found, expected) < FLOATS


@dataclasses.dataclass(frozen=True)
class Case:
    """A family's tiny model: packed, and what transformers computes with the weights it stands for."""

    name: str
    packed: PackedGraph
    given: dict[int, Tensors]  # inputs by their batch
    expected: dict[int, Tensors]


@pytest.fixture(scope="module", params=encoder_families.names())
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp(request.param)
    config = encoder_families.load(request.param).tiny_config()
    weights = encoder_models.tensors(config)
    encoder_models.write(folder / "source", config, weights)
    shiftadd_tvm.quantize(folder / "source", folder / "packed", bits=3)
    packed = PackedGraph(folder / "packed")
    same = {f"{name}.weight": bcq.dequantize(packed.weight(name)) for name in packed.linears()}
    encoder_models.write(folder / "same", config, {**weights, **same})
    given = {batch: encoder_models.inputs(config, batch) for batch in BATCHES}
    expected = {n: encoder_models.outputs(folder / "same", one) for n, one in given.items()}
    return Case(request.param, packed, given, expected)


def note(record: Note, case: Case, preset: str, **others: str) -> None:
    """Note what was proven, for docs/models.md."""
    for key, value in {"family": case.name, "preset": preset, **others}.items():
        record(key, value)


@pytest.mark.parametrize("activations", ["float32", "int16"])
def test_a_compiled_encoder_equals_transformers(
    case: Case, activations: str, record_property: Note
) -> None:
    graph = FunctionGraph(case.packed, TARGET.rows, activations)
    executable, counts = pipeline.build(graph.build(), TARGET)
    assert counts["scheduled"] and not counts["fallback"]
    machine = relax.VirtualMachine(executable, tvm.cpu())
    tensor = lambda array: tvm.runtime.tensor(np.ascontiguousarray(array))
    bundle = [tensor(parameter.read()) for parameter in graph.parameters]
    names, largest = [value.name for value in graph.graph.graph.output], 0.0
    for batch in BATCHES:
        given = (tensor(case.given[batch][variable.name]) for variable in graph.inputs)
        values = machine[FUNCTION](*given, bundle)
        parts = [values] if len(names) == 1 else values
        found = {name: part.numpy() for name, part in zip(names, parts, strict=True)}
        largest = max(largest, encoder_models.error(found, case.expected[batch]))
    note(record_property, case, TARGET.name, activations=activations, error=f"{largest:.0e}")
    assert largest <= RELATIVE[activations]


def test_code_is_generated(case: Case, record_property: Note) -> None:
    target = backend.load("arm")
    graph = FunctionGraph(case.packed, target.rows, "int16")
    executable, counts = pipeline.build(graph.build(), target)
    assert counts["scheduled"] and not counts["fallback"] and executable.stats()
    note(record_property, case, target.name)


def test_a_gpu_is_refused(case: Case, record_property: Note, tmp_path: Path) -> None:
    target = backend.load("cuda-sm90")
    with pytest.raises(UnsupportedError, match="compiled for processors only.* not for cuda-sm90"):
        function_compiler.compile_graph(
            case.packed, tmp_path / "app", target, CompileSettings(), version="test"
        )
    assert not (tmp_path / "app").exists()
    note(record_property, case, target.name, error="refused")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny BERT of base names and TensorFlow's norms, compiled at once, and inputs."""
    root, config = tmp_path_factory.mktemp("text"), encoder_families.load("bert").tiny_config()
    weights = encoder_models.tensors(config)
    old = (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))
    renamed = {}
    for name, value in weights.items():
        for ours, theirs in old:
            name = name.replace(ours, theirs)
        renamed[name.removeprefix("bert.")] = value
    ids = np.arange(40)[None]
    renamed["embeddings.position_ids"] = ids.astype(np.float32)
    encoder_models.write(root / "bert", config, renamed)
    np.savez(root / "inputs.npz", **encoder_models.inputs(config, 2))
    (root / "bert" / "tokenizer.json").write_text("{}")
    report = result("compile", "bert", "--bits", "4", "-o", "artifact", cwd=root)
    assert report["verify"]["max_logit_error"] <= report["verify"]["tolerance"]
    return root


def test_an_encoder_goes_through_the_verbs(text: Path) -> None:
    report = result("run", "artifact", "--inputs", "inputs.npz", "-o", "y.npz", cwd=text)
    assert report["outputs"]["logits"] == "float32 [2, 5]"
    assert report["outputs"]["last_hidden_state"] == f"float32 [2, {encoder_models.TOKENS}, 48]"
    assert result("verify", "artifact", cwd=text)["files_ok"]
    found = result("inspect", "artifact", cwd=text)
    assert (found["model_kind"], found["model_type"]) == ("function", "bert")
    packed = result("inspect", "bert-shiftadd-4bit", cwd=text)
    assert (packed["kind"], packed["model_type"], packed["linears"]) == ("packed", "bert", 12)
    assert packed["modules_to_not_convert"] == ["bert.pooler.dense", "classifier"]
    assert (text / "bert-shiftadd-4bit" / "tokenizer.json").read_text() == "{}"
    source = result("inspect", "bert", cwd=text)
    assert source["supported"] and source["outputs"][-1] == "logits"
    assert "input_ids" in source["input"] and "40 tokens" in source["input"]
    work = source["quantizing"][0]
    assert work["method"] == "data-free" and work["memory_bytes"] > source["total_bytes"]
    sizes = [row["bytes"] for row in source["packed"]]
    assert sizes == sorted(sizes) and sizes[-1] < source["total_bytes"]
    assert workflow.plan_compile(text / "bert", bits=4).reused  # it is what would be made again


@pytest.mark.parametrize("name", ["artifact", "bert-shiftadd-4bit"])
def test_a_report_of_an_encoder_shows_its_linears(name: str, text: Path) -> None:
    found = result("report", name, "-o", f"{name}.html", cwd=text)
    assert found["nominal_bits"] == 4 and found["operations"] is None
    assert {layer["bits"] for layer in found["layers"]} == {4}
    assert any("Operations are not counted" in sentence for sentence in found["missing"])
    measured = [layer["weight_error"] for layer in found["layers"]]
    assert all(error is None for error in measured) == (name == "artifact")
    assert "encoder.layer.1.output.dense" in (text / f"{name}.html").read_text(encoding="utf-8")


def test_examples_choose_the_codes(text: Path) -> None:
    config = encoder_families.load("bert").tiny_config()
    np.savez(text / "examples.npz", **encoder_models.inputs(config, 8))
    arguments = ("--bits", "2", "--calib", "examples.npz", "-o", "calibrated")
    report = result("quantize", "bert", *arguments, cwd=text)
    assert all(0 < layer["output_error"] < 0.5 for layer in report["layers"])


def test_inputs_that_do_not_fit_are_refused(text: Path) -> None:
    config = encoder_families.load("bert").tiny_config()
    given = encoder_models.inputs(config, 1)
    long = {name: np.tile(value, (1, 4)) for name, value in given.items()}
    np.savez(text / "long.npz", **long)
    fails(call_here("run", "artifact", "--inputs", "long.npz", cwd=text), 2, "44 tokens", "at most 40")
    model = shiftadd_tvm.load(text / "artifact")
    with pytest.raises(shiftadd_tvm.errors.UsageError, match="44 tokens, expected at most 40"):
        model.call(FUNCTION, *long.values())  # by libshiftadd itself
    fails(call_here("run", "artifact", "--prompt", "x", cwd=text), 3, "artifact", "function")
    fails(call_here("eval", "bert", "--text", "bert/config.json", cwd=text), 3, "'bert' is an encoder")
    wanted = ("quantize", "bert", "--target-size", "1MB")
    fails(call_here(*wanted, cwd=text), 2, "--target-size", "encoder")
    fails(call_here("quantize", "bert", "--spill", cwd=text), 2, "--spill", "encoder")
    with pytest.raises(shiftadd_tvm.errors.UsageError, match="--spill is for language models"):
        shiftadd_tvm.quantize(text / "bert", text / "spilt", bits=3, spill=True)
    assert not (text / "spilt").exists()
    with pytest.raises(shiftadd_tvm.errors.UsageError, match="--cache is for language models"):
        shiftadd_tvm.compile(text / "bert-shiftadd-4bit", text / "other", cache="int8")
    assert not (text / "other").exists()


@pytest.mark.parametrize(("name", "length"), [("dinov2", 5), ("dinov2_with_registers", 8)])
def test_positions_of_another_image_size_are_interpolated(
    name: str, length: int, tmp_path: Path
) -> None:
    config = encoder_families.load(name).tiny_config()
    encoder_models.write(tmp_path, config, encoder_models.tensors(config))
    other = {**config, "image_size": 8}
    given = encoder_models.inputs(other, 2)
    expected = encoder_models.outputs(tmp_path, given)  # transformers interpolates as it runs
    (tmp_path / "config.json").write_text(json.dumps(other))
    found = run(encoder_plan.plan(open_checkpoint(tmp_path), SETTINGS), given)
    assert found["last_hidden_state"].shape == (2, length, 48)
    assert encoder_models.error(found, expected) < FLOATS


VIT = encoder_families.load("vit").tiny_config()
REFUSED = {
    "part of a patch": ({"image_size": 15}, "15 x 15 pixels"),
    "an unknown activation": ({"hidden_act": "tan"}, "tan"),
    "another class": ({"architectures": ["ViTForMaskedImageModeling"]}, "ViTForMasked"),
    "uneven heads": ({"num_attention_heads": 5}, "5 heads"),
    "no layers": ({"num_hidden_layers": 0}, "layers"),
}


@pytest.mark.parametrize(("changed", "named"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_supported_is_refused_by_name(
    changed: Config, named: str, tmp_path: Path
) -> None:
    encoder_models.write(tmp_path / "vit", {**VIT, **changed}, {"x": np.ones(1, np.float32)})
    child = call_here("compile", "vit", cwd=tmp_path)
    fails(child, child.returncode, "vit", "config.json has", named)
    assert child.returncode in (3, 4) and [p.name for p in tmp_path.iterdir()] == ["vit"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop("vit.layernorm.bias"), "no tensor vit.layernorm.bias"),
        (lambda w: w.update(extra=np.ones(3, np.float32)), "tensor extra is not part of a vit"),
        (lambda w: w.update({"vit.embeddings.cls_token": np.ones(48, np.float32)}), "[1, 1, 48]"),
        (lambda w: w.pop("vit.pooler.dense.bias"), "no tensor vit.pooler.dense.bias"),
    ],
    ids=["missing", "extra", "shape", "half a pooler"],
)
def test_tensors_of_another_model_are_refused(
    change: Callable[[Tensors], object], words: str, tmp_path: Path
) -> None:
    weights = encoder_models.tensors(VIT)
    change(weights)
    encoder_models.write(tmp_path, VIT, weights)
    with pytest.raises((BadFileError, UnsupportedError), match=re.escape(words)):
        encoder_plan.plan(open_checkpoint(tmp_path), SETTINGS)


@pytest.mark.parametrize("name", encoder_families.names())
def test_hostile_configs_are_refused_in_a_sentence(name: str) -> None:
    config = encoder_families.load(name).tiny_config()
    for key in [key for key in config if key != "model_type"]:
        for value in ({}, "x", -3, 0, [1.5], float("nan")):
            try:
                encoder_families.read_config({**config, key: value}, "config.json").tensor_shapes()
            except (BadFileError, UnsupportedError) as error:
                assert str(error).startswith("config.json: ")


def test_the_documentation_lists_every_family() -> None:
    text = (Path(__file__).parent.parent / "docs" / "models.md").read_text(encoding="utf-8")
    for name in encoder_families.names():
        family = encoder_families.load(name)
        assert f"| {family.TITLE} | `{name}` |" in text
        assert all(f"`{architecture}`" in text for architecture in family.ARCHITECTURES)
