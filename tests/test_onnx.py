"""ONNX files from end to end: quantized, compiled, called, by the command line and from Python."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_models
import pytest
from command import call_here, fails, result
from conftest import PROBE

import shiftadd_tvm
from shiftadd_tvm import bcq, onnx_runner
from shiftadd_tvm.onnx_packed import PackedGraph

Array = np.ndarray


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The vision model in 3 bits by examples, compiled in a process that says what it imported."""
    root = tmp_path_factory.mktemp("onnx")
    onnx_models.save(onnx_models.vision_model(), root / "vision.onnx")
    np.savez(root / "examples.npz", image=onnx_models.images(24))
    np.savez(root / "inputs.npz", image=onnx_models.images(3, seed=9))
    arguments = ("--bits", "3", "--calib", "examples.npz", "-o", "packed")
    report = result("quantize", "vision.onnx", *arguments, cwd=root)
    (root / "quantize.json").write_text(json.dumps(report))
    command = [sys.executable, "-c", PROBE, "compile", "packed", "-o", "artifact", "--json"]
    child = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    (root / "compile.json").write_text(child.stdout)
    return root


def expected(packed: Path, **inputs: Array) -> dict[str, Array]:
    """Return what the graph computes with the dequantized weights."""
    model = PackedGraph(packed)
    weights = {n: np.ascontiguousarray(bcq.dequantize(model.weight(n)).T) for n in model.linears()}
    return onnx_runner.run(model.graph(), {**inputs, **{f"{n}.weight": w for n, w in weights.items()}})


def test_quantizing_by_examples_weighs_errors_of_outputs(folder: Path) -> None:
    report = json.loads((folder / "quantize.json").read_text())
    assert report["nominal_bits"] == 3 and len(report["layers"]) == 7
    assert all(0 < layer["output_error"] < 0.2 for layer in report["layers"])
    calibration = PackedGraph(folder / "packed").quantization["calibration"]
    assert isinstance(calibration, dict) and calibration["examples"] == 24


def test_compiling_needs_no_torch_and_checks_itself(folder: Path) -> None:
    fields, imported = map(json.loads, (folder / "compile.json").read_text().splitlines())
    assert not {"torch", "transformers", "onnxruntime"} & set(imported)
    assert fields["kernels"]["imported"] > 0 and fields["kernels"]["fallback"] == 0
    assert fields["verify"]["max_logit_error"] <= fields["verify"]["tolerance"]
    assert fields["verify"]["tokens_compared"] == 4  # labels of the golden inputs


@pytest.mark.parametrize("batch", [1, 3])
def test_an_artifact_computes_what_its_packed_model_stands_for(folder: Path, batch: int) -> None:
    images = onnx_models.images(batch, seed=7)
    model = shiftadd_tvm.load(folder / "artifact")
    found = model(image=images)
    wanted = expected(folder / "packed", image=images)
    tolerance = 1e-2 * np.abs(wanted["scores"]).max()  # whole-number activations
    np.testing.assert_allclose(found["scores"], wanted["scores"], atol=tolerance)
    assert found["label"].dtype == np.int64 and found["label"].shape == (batch,)
    np.testing.assert_array_equal(found["label"], found["scores"].argmax(axis=1))


def test_running_writes_named_outputs_once(folder: Path) -> None:
    child = call_here(
        "run", "artifact", "--inputs", "inputs.npz", "-o", "y.npz", "--json", cwd=folder
    )
    assert child.returncode == 0, child.stderr
    assert json.loads(child.stdout)["outputs"]["scores"] == "float32 [3, 12]"
    given = np.load(folder / "inputs.npz")["image"]
    with np.load(folder / "y.npz") as stored:
        np.testing.assert_array_equal(
            stored["scores"], shiftadd_tvm.load(folder / "artifact")({"image": given})["scores"]
        )
    again = call_here("run", "artifact", "--inputs", "inputs.npz", "-o", "y.npz", cwd=folder)
    fails(again, 2, "y.npz", "already exists", "--force")


def test_verifying_and_inspecting(folder: Path) -> None:
    child = call_here("verify", "artifact", "--json", cwd=folder)
    assert child.returncode == 0 and json.loads(child.stdout)["files_ok"]
    found = json.loads(call_here("inspect", "artifact", "--json", cwd=folder).stdout)
    assert found["model_kind"] == "function"
    assert "scores float32 [batch, 12]" in found["functions"]["main"]
    packed = json.loads(call_here("inspect", "packed", "--json", cwd=folder).stdout)
    assert packed["model_kind"] == "onnx" and packed["linears"] == 7
    source = json.loads(call_here("inspect", "vision.onnx", "--json", cwd=folder).stdout)
    assert source["packed_2bit_bytes"] < source["packed_4bit_bytes"] < source["total_bytes"]
    assert source["inputs"] == ["image"] and source["outputs"] == ["scores", "label"]


def test_one_command_cuts_a_graph_and_looks_up_few_rows(tmp_path: Path) -> None:
    model = onnx_models.text_model()
    onnx_models.save(model, tmp_path / "text.onnx")
    inner = model.graph.node[-2].output[0]  # of Tanh
    report = result("compile", "text.onnx", "--bits", "4", "--outputs", inner, cwd=tmp_path)
    ids, mask = np.array([[4, 49, 0]]), np.array([[True, True, False]])
    found = shiftadd_tvm.load(tmp_path / report["output"])(ids=ids, mask=mask)
    wanted = expected(tmp_path / "text-shiftadd-4bit", ids=ids, mask=mask)[inner]
    np.testing.assert_allclose(found[inner], wanted, atol=1e-2)
    assert not found[inner][0, 2].any()  # the masked position
    model = shiftadd_tvm.load(tmp_path / report["output"])
    beyond = model(ids=np.array([[4, 1 << 40, 0]]), mask=mask)  # reads the table's last row
    np.testing.assert_array_equal(beyond[inner], found[inner])
    manifest = json.loads((tmp_path / report["output"] / "manifest.json").read_text())
    assert manifest["activations"] == {"lut_query": "int16"}
    again = call_here("compile", "text.onnx", "--bits", "4", "--outputs", inner, cwd=tmp_path)
    fails(again, 2, "already exists")


def test_unsupported_operators_are_named_all_at_once(tmp_path: Path) -> None:
    g = onnx_models.Graph()
    x = g.node("STFT", "x", g.constant(4))
    y = g.node("Det", g.node("MatMul", "x", g.weight(8, 8)))
    g.nodes.append(onnx.helper.make_node("Custom", ["x"], ["z"], domain="com.example"))
    outputs = [onnx.ValueInfoProto(name=name) for name in (x, y, "z")]
    for output in outputs:
        output.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        output.type.tensor_type.shape.dim.add()
    model = g.model([onnx_models.value("x", 1, 8, 8)], outputs)
    model.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    onnx.save(model, tmp_path / "m.onnx")
    for verb in ("quantize", "compile", "inspect"):
        fails(call_here(verb, "m.onnx", cwd=tmp_path), 3, "com.example.Custom", "Det", "STFT")
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("quantize", "vision.onnx", "--bits", "2.5"), 2, ("--bits", "2.5", "1, 2, 3 or 4")),
        (("quantize", "vision.onnx", "--outputs", "score"), 2, ("score", "nearest", "scores")),
        (("quantize", "vision.onnx", "--calib", "names.npz"), 4, ("names.npz", "picture", "image")),
        (("quantize", "vision.onnx", "--calib", "shape.npz"), 4, ("shape.npz", "[2, 3, 9, 8]")),
        (("quantize", "vision.onnx", "--calib", "vision.onnx"), 4, ("vision.onnx", ".npz")),
        (("quantize", "damaged.onnx"), 4, ("damaged.onnx", "not a valid ONNX file")),
        (("quantize", "dense.onnx"), 3, ("dense.onnx", "no linear")),
        (("quantize", "vision.onnx", "--target-size", "1MB"), 2, ("--target-size", "ONNX")),
        (("compile", "packed", "--outputs", "scores", "-o", "other"), 2, ("packed", "fixed")),
        (("eval", "packed", "--text", "text.txt"), 3, ("packed", "ONNX graph")),
        (("run", "artifact", "--prompt", "x"), 3, ("artifact", "function", "--inputs")),
        (("run", "artifact", "--inputs", "shape.npz"), 2, ("image", "[2, 3, 9, 8]", "[batch, 3, 8, 8]")),
        (("run", "artifact", "--inputs", "names.npz"), 2, ("picture", "image")),
        (("run", "artifact"), 2, ("--prompt", "--inputs")),
        (("verify", "artifact", "--golden", "names.npz"), 4, ("names.npz",)),
    ],
    ids=lambda value: value if isinstance(value, int) else None,
)
def test_what_cannot_be_done_is_said_in_one_sentence(
    folder: Path, arguments: tuple[str, ...], code: int, words: tuple[str, ...]
) -> None:
    np.savez(folder / "names.npz", picture=onnx_models.images(1))
    np.savez(folder / "shape.npz", image=np.zeros((2, 3, 9, 8), np.float32))
    (folder / "text.txt").write_text("a text")
    (folder / "damaged.onnx").write_bytes((folder / "vision.onnx").read_bytes()[:2000])
    g = onnx_models.Graph()
    y = g.node("Relu", "x")
    inputs, outputs = [onnx_models.value("x", 2)], [onnx_models.value(y, 2)]
    onnx_models.save(g.model(inputs, outputs), folder / "dense.onnx")
    before = sorted(path.name for path in folder.iterdir())
    fails(call_here(*arguments, cwd=folder), code, *words)
    assert sorted(path.name for path in folder.iterdir()) == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(graph_sha256="0"), "is not the one"),
        (lambda c: c.update(linear_shapes={}), "linear_shapes"),
        (lambda c: c["linear_shapes"].update(head=[16, 80]), "expected [3, 16, 10]"),
        (lambda c: c.update(shared_input_groups=[["wide", "head"]]), "shared_input_groups"),
        (lambda c: c["bits_per_module"].pop("wide"), "bits_per_module"),
    ],
    ids=["graph", "no linear", "shape", "groups", "bits"],
)
def test_a_damaged_packed_graph_is_refused(
    folder: Path, tmp_path: Path, change: object, words: str
) -> None:
    shutil.copytree(folder / "packed", tmp_path / "packed")
    path = tmp_path / "packed" / "config.json"
    config = json.loads(path.read_text())
    change(config["quantization_config"])  # type: ignore[operator]
    path.write_text(json.dumps(config))
    fails(call_here("compile", "packed", cwd=tmp_path), 4, "packed", words)
    assert [entry.name for entry in tmp_path.iterdir()] == ["packed"]
