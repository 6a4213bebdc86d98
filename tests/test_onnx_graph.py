"""What becomes of an ONNX graph before it is quantized: folded, its linears' weights taken out."""

from collections import Counter

import numpy as np
import onnx
import onnx_models
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from shiftadd_tvm import onnx_folding, onnx_linears, onnx_runner


def run(model: onnx.ModelProto, **inputs: np.ndarray) -> list[np.ndarray]:
    return ReferenceEvaluator(model).run(None, inputs)


@pytest.fixture(scope="module")
def prepared() -> onnx_linears.Prepared:
    return onnx_linears.separate(onnx_folding.fold(onnx_models.vision_model()))


@pytest.mark.parametrize("batch", [1, 3])
def test_a_prepared_graph_computes_the_same(prepared: onnx_linears.Prepared, batch: int) -> None:
    image = onnx_models.images(batch)
    weights = {f"{n}.weight": np.ascontiguousarray(w.T) for n, w in prepared.weights.items()}
    onnx.checker.check_model(prepared.model)
    expected = run(onnx_models.vision_model(), image=image)
    found = run(prepared.model, image=image, **weights)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found[1], expected[1])


def test_linears_are_found_and_grouped_by_what_they_read(prepared: onnx_linears.Prepared) -> None:
    parts = tuple(f"attention.{part}" for part in ("query", "key", "value"))
    others = ("attention.output", "wide", "strided", "head")
    assert list(prepared.weights) == [*parts, *others]
    assert prepared.groups == [parts, *((name,) for name in others)]
    assert prepared.weights["head"].shape == (onnx_models.CLASSES, 48 + onnx_models.DIM)
    assert prepared.dense == ["conv_0"]  # the patches' convolution is none of one pixel
    assert [value.name for value in prepared.inputs()] == ["image"]


def test_sizes_are_folded_though_the_batch_varies() -> None:
    kinds = Counter(node.op_type for node in onnx_folding.fold(onnx_models.vision_model()).graph.node)
    assert not kinds.keys() & {"Shape", "Gather", "Unsqueeze"}
    assert kinds["Transpose"] == 6  # the three in front of weights are gone


def test_linears_of_one_pixel_after_one_another_share_an_activation() -> None:
    g = onnx_models.Graph()
    for _ in range(2):
        g.node("Conv", "x", g.weight(8, 16, 1, 1))
    outputs = [onnx_models.value(n.output[0], 1, 8, 4, 4) for n in g.nodes]
    model = g.model([onnx_models.value("x", 1, 16, 4, 4)], outputs)
    found = onnx_linears.separate(model)
    assert [len(group) for group in found.groups] == [2]


def test_a_weight_that_two_activations_read_is_stored_once() -> None:
    g = onnx_models.Graph()
    shared, own = g.weight(16, 16), g.weight(16, 8)
    first = g.node("MatMul", "x", shared)
    g.node("MatMul", g.node("Relu", first), shared)
    g.node("MatMul", "x", own)
    outputs = [onnx_models.value(node.output[0], 2, "n") for node in g.nodes[2:]]
    found = onnx_linears.separate(g.model([onnx_models.value("x", 2, 16)], outputs))
    assert sorted(map(len, found.groups)) == [1, 1] and len(found.weights) == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda g: g.node("Gemm", "x", g.weight(16, 8), transA=1),
        lambda g: g.node("MatMul", g.weight(4, 16), "x"),
        lambda g: g.node("MatMul", "x", g.constant(np.ones((16, 8)), np.float64)),
        lambda g: g.node("MatMul", "x", g.weight(16, 2)),
    ],
    ids=["transposed activation", "constant on the left", "float64", "two outputs"],
)
def test_what_is_no_linear_stays(change: object) -> None:
    g = onnx_models.Graph()
    output = change(g)  # type: ignore[operator]
    inputs = [onnx_models.value("x", 16, 16)]
    found = onnx_linears.separate(g.model(inputs, [onnx.ValueInfoProto(name=output)]))
    assert not found.weights and list(found.model.graph.node) == g.nodes


def test_chance_is_not_folded() -> None:
    g = onnx_models.Graph()
    noise = g.node("RandomNormal", shape=[4])
    y = g.node("Add", "x", noise)
    folded = onnx_folding.fold(g.model([onnx_models.value("x", 4)], [onnx_models.value(y, 4)]))
    assert [node.op_type for node in folded.graph.node] == ["RandomNormal", "Add"]


def test_made_up_inputs_fit_the_tables_that_they_index() -> None:
    model = onnx_models.text_model()
    prepared = onnx_linears.separate(onnx_folding.fold(model))
    inputs = onnx_runner.made_up(prepared.model, prepared.inputs(), 0)
    assert inputs["ids"].shape == (1, 3) and inputs["ids"].dtype == np.int64
    assert 0 <= inputs["ids"].min() and inputs["ids"].max() < 50
    assert inputs["mask"].dtype == bool and inputs["mask"].all()


@pytest.mark.parametrize("installed", [True, False], ids=["onnxruntime", "onnx"])
def test_both_runners_agree(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not installed:
        monkeypatch.setattr(onnx_runner.importlib.util, "find_spec", lambda name: None)
    image = onnx_models.images(2)
    found = onnx_runner.run(onnx_models.vision_model(), {"image": image})
    expected = run(onnx_models.vision_model(), image=image)
    np.testing.assert_allclose(found["scores"], expected[0], atol=1e-5)
    assert onnx_runner.name().split()[0] in ("onnxruntime", "onnx")


def test_initializers_are_read_as_they_are() -> None:
    tensor = numpy_helper.from_array(np.arange(3, dtype=np.int64), "w")
    value = helper.make_tensor_value_info("w", 7, [3])
    assert list(onnx_folding.constants(onnx.GraphProto(initializer=[tensor]))) == ["w"]
    # an initializer that is an input too is a default, which a caller may replace
    assert not onnx_folding.constants(onnx.GraphProto(initializer=[tensor], input=[value]))
