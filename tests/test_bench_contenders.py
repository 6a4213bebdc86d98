"""What the contenders of a bench compute is what they claim to: ours, and the peers that are here."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Tiny
from kernels import PRESETS, compile_op

from shiftadd_tvm import backend, bcq, kernel_bench, shapes
from shiftadd_tvm.baselines import torch_kernel, torch_model
from shiftadd_tvm.benchmark import memory
from shiftadd_tvm.ops import read_memory
from shiftadd_tvm.runtime.engine import Engine
from shiftadd_tvm.settings import QuantizeSettings
from shiftadd_tvm.synthetic import SyntheticModel

KERNEL: dict[str, Any] = {"threads": 1, "shape": [48, 256], "cold_bytes": 20_000}
MODEL: dict[str, Any] = {
    **{"hidden": 64, "intermediate": 72, "layers": 5, "heads": 4, "kv_heads": 2, "head_dim": 16},
    **{"vocabulary": 128, "context": 32, "threads": 1, "prompt_tokens": 8, "decoded_tokens": 6},
}


def random_words(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 1 << 32, shape, np.uint32)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("op", read_memory.SHAPES)
def test_reading_memory(op: str, preset: str) -> None:
    runs, columns = read_memory.SHAPES[op]
    words = random_words((3, runs, 7, columns))
    run = compile_op(op, read_memory.read, [words], symbolic=[0], preset=preset)
    for parts in (1, 3):
        assert np.array_equal(run(words[:parts]), read_memory.REFERENCES[op](words[:parts]))


def test_an_artifact_reads_memory(tiny: Tiny) -> None:
    engine = Engine(tiny.artifact, threads=1)
    for op, (runs, columns) in read_memory.SHAPES.items():
        for parts, blocks in ((1, 1), (2, 5), (5, 1000)):
            words = random_words((parts, runs, blocks, columns))
            (sums,) = engine.call(op, words)
            assert np.array_equal(sums, read_memory.REFERENCES[op](words))


def test_a_probe_reads_nearly_all_of_its_buffer() -> None:
    words = memory.probe_words(3 << 20)
    assert words.ctypes.data % 64 == 0
    for threads in (1, 3):
        for view in memory.probe_views(words, read_memory.SHAPES, threads).values():
            assert len(view) == threads and words.nbytes - view.nbytes < threads * 256


@pytest.mark.parametrize("shape", [(40, 64), (48, 264)])
@pytest.mark.parametrize("bits", [1, 3])
@pytest.mark.parametrize("scales", kernel_bench.SCALES)
def test_the_operator_that_is_timed_is_right(
    shape: tuple[int, int], bits: int, scales: str
) -> None:
    target = backend.load(PRESETS[0])
    cold = kernel_bench.ColdLinears(shape, bits, target, 120_000, "int16", scales)
    model = kernel_bench.linear_model(*shape, bits, cold.count, scales)
    x = np.random.default_rng(0).standard_normal((1, shape[1]))
    names = [name for name in model.linears() if name.endswith(kernel_bench.LINEAR)]
    for _ in range(2):  # by two sets of weights
        outputs = cold.outputs()
        assert len(outputs) == len(names) == cold.count
        for name, found in zip(names, outputs, strict=True):
            expected = x @ bcq.dequantize(model.weight(name)).T
            # 13 bits of an activation whose drawn column scales differ several times over
            assert np.abs(found - expected).max() <= 2e-3 * np.abs(expected).max()


def test_the_weights_that_are_timed_are_cold_and_counted() -> None:
    cold = kernel_bench.ColdLinears((40, 64), 2, backend.load(PRESETS[0]), 120_000, "int16")
    model = kernel_bench.linear_model(40, 64, 2, 1)
    _, found = kernel_bench.linear_parameters(model, backend.load(PRESETS[0]), "int16")
    assert cold.nbytes == sum(p.read().nbytes for p in found)
    assert cold.nbytes * cold.count * len(cold._sets) >= 120_000


def test_a_synthetic_model_is_a_packed_model() -> None:
    settings = QuantizeSettings(bits=2, embedding_bits=8)
    model = SyntheticModel(shapes.config(shapes.TINY), settings)
    first, second = (f"model.layers.{index}.self_attn.q_proj" for index in (0, 1))
    weight = model.weight(first)
    assert weight.bits == 2 and weight.shape == (96, 96)
    dense = bcq.dequantize(weight)
    assert np.isfinite(dense).all() and 0.2 < dense.std() * 96**0.5 < 5
    assert not np.array_equal(weight.planes, model.weight(second).planes)
    again = SyntheticModel(shapes.config(shapes.TINY), settings).weight(first)
    assert np.array_equal(bcq.dequantize(again), dense)
    table = model.read("model.embed_tokens.weight")
    assert table.dtype == np.float32 and np.isfinite(table).all() and table.std() > 0
    assert not model.has_golden and model.tokenizer_files() == {}


@pytest.mark.parametrize("name", shapes.names())
def test_published_shapes_can_be_read(name: str) -> None:
    config = shapes.config(name)
    if config["model_type"] == "llama":  # the family checks heads and sizes
        decoder = shapes.llama.read_config(config)
        assert decoder.heads * decoder.head_dim == decoder.hidden
    assert all(inputs % 8 == 0 for _, inputs in shapes.linear_shapes(name))


def test_torch_is_extrapolated_by_its_layers() -> None:
    # 4 of 10 layers: 1 second beside the layers, 2 a layer
    assert torch_model.extrapolated(9.0, 3.0, 4, 10) == pytest.approx(21.0)
    assert torch_model.extrapolated(9.0, 9.0, 4, 4) == 9.0
    seven = {"hidden": 4096, "intermediate": 11008, "layers": 32, "heads": 32, "kv_heads": 32}
    seven |= {"head_dim": 128, "vocabulary": 32000, "tied_embeddings": False}
    assert torch_model.layer_weights(seven) == 4 * 4096**2 + 3 * 4096 * 11008
    assert 2 <= torch_model.built_layers(seven) < 32


def test_torch_plays() -> None:
    info, actions = torch_kernel.prepare(KERNEL)
    assert info["weight_bytes"] == 2 * 48 * 256 and actions["call"]() > 0


def test_onnxruntime_plays() -> None:
    pytest.importorskip("onnxruntime")
    from shiftadd_tvm.baselines import onnxruntime_kernel

    info, actions = onnxruntime_kernel.prepare(KERNEL)
    assert info["weight_bytes"] == 48 * 256 // 2 + 48 * 8 * 4 and actions["call"]() > 0


@pytest.mark.parametrize("repacked", [False, True])
@pytest.mark.parametrize("kind", ["Q4_0", "Q2_K", "Q3_K", "Q4_K"])
def test_ggml_multiplies(kind: str, repacked: bool) -> None:
    pytest.importorskip("llama_cpp")
    quants = pytest.importorskip("gguf.quants")
    import gguf

    from shiftadd_tvm.baselines import ggml, ggml_kernel
    from shiftadd_tvm.benchmark.turns import ContenderError

    library = ggml.Ggml()
    try:
        products = ggml_kernel.Products(library, {**KERNEL, "type": kind, "repacked": repacked})
    except ContenderError as error:
        assert repacked, error
        pytest.skip(str(error))
    products.call()
    rows = library.random_rows(kind, 48, 256)
    assert products.nbytes == rows.nbytes
    dense = quants.dequantize(rows, gguf.GGMLQuantizationType[kind])
    x = np.random.default_rng(0).standard_normal(256, np.float32)
    expected = dense @ x
    for found in products.outputs():  # activations are rounded to 8 bits
        assert np.abs(found - expected).max() <= 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("tied", [False, True])
def test_llama_cpp_plays(tied: bool, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    pytest.importorskip("gguf")
    from shiftadd_tvm.baselines import llama_model

    asked = {**MODEL, "type": "Q3_K", "tied_embeddings": tied, "folder": str(tmp_path)}
    info, actions = llama_model.prepare(asked)
    small = 30 if tied else 31  # whose rows blocks of 256 do not divide; 72 not even blocks of 32
    assert f"{small} Q4_0" in info["note"] and "5 F32" in info["note"]
    assert actions["prefill"]() > 0
    assert len(actions["decode"](2)) == 2
    assert list(tmp_path.iterdir()) == []
