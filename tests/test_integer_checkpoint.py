"""GPTQ and AWQ checkpoints: unpacked as an obvious packer, written from the formats, packed them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command import call_here
from models import tiny_config, tiny_tensors
from safetensors.numpy import save_file

from shiftadd_tvm.checkpoint import open_checkpoint
from shiftadd_tvm.dequantized import DequantizedModel
from shiftadd_tvm.errors import BadFileError, UnsupportedError
from shiftadd_tvm.packed import open_packed
from shiftadd_tvm.quantize_plan import plan
from shiftadd_tvm.settings import QuantizeSettings

OUTPUTS, INPUTS, GROUP = 64, 96, 32
MODULE = "model.layers.0.self_attn.q_proj"
Tensors = dict[str, np.ndarray]


def pack_word(values: list[int], bits: int) -> list[int]:
    """Return the int32 words of values that follow each other from the lowest bit of the first."""
    whole = sum(value << (bits * place) for place, value in enumerate(values))
    words = [whole >> (32 * index) & 0xFFFFFFFF for index in range(len(values) * bits // 32)]
    return [word - (1 << 32) if word >= 1 << 31 else word for word in words]


def gptq(codes: np.ndarray, zeros: np.ndarray, bits: int, offset: int) -> Tensors:
    """Pack codes (K, N) and zero points (G, N): columns of codes, rows of zero points."""
    stored = (zeros.astype(int) - offset) % (1 << bits)
    columns = [pack_word(column.tolist(), bits) for column in codes.T]
    return {
        "qweight": np.array(columns, np.int32).T.copy(),
        "qzeros": np.array([pack_word(row.tolist(), bits) for row in stored], np.int32),
    }


def awq(codes: np.ndarray, zeros: np.ndarray) -> Tensors:
    """Pack codes (K, N) and zero points (G, N), eight outputs a word: 0, 2, 4, 6, 1, 3, 5, 7."""

    def pack(row: np.ndarray) -> list[int]:
        eights = row.reshape(-1, 8).tolist()
        return [pack_word([e[0], e[2], e[4], e[6], e[1], e[3], e[5], e[7]], 4)[0] for e in eights]

    return {
        "qweight": np.array([pack(row) for row in codes], np.int32),
        "qzeros": np.array([pack(row) for row in zeros], np.int32),
    }


def numbers(bits: int, group: int = GROUP) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return codes (K, N), zero points (G, N), every possible one among them, and scales (G, N)."""
    rng = np.random.default_rng(bits)
    groups = INPUTS // group
    codes = rng.integers(0, 1 << bits, (INPUTS, OUTPUTS))
    zeros = rng.integers(0, 1 << bits, (groups, OUTPUTS))
    zeros[0, :2] = 0, (1 << bits) - 1
    return codes, zeros, rng.uniform(0.01, 0.1, (groups, OUTPUTS)).astype(np.float16)


def expected(
    codes: np.ndarray, zeros: np.ndarray, scales: np.ndarray, groups: list[int]
) -> np.ndarray:
    """Return W (N, K), weight by weight."""
    found = np.zeros((OUTPUTS, INPUTS), np.float32)
    for k, group in enumerate(groups):
        for n in range(OUTPUTS):
            difference = int(codes[k, n]) - int(zeros[group, n])
            found[n, k] = np.float32(difference) * np.float32(scales[group, n])
    return found


def write(folder: Path, parts: Tensors, fields: dict[str, object]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_type": "llama", "quantization_config": fields}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {f"{MODULE}.{name}": value for name, value in parts.items()}
    tensors["model.norm.weight"] = np.arange(8, dtype=np.float16)
    save_file(tensors, folder / "model.safetensors")
    return folder


def check(folder: Path, weights: np.ndarray, what: str) -> None:
    checkpoint = open_checkpoint(folder)
    name = f"{MODULE}.weight"
    assert checkpoint.names() == [name, "model.norm.weight"]
    assert checkpoint.stored_as() == what and "quantization_config" not in checkpoint.config
    assert (checkpoint.shape(name), checkpoint.dtype(name)) == (weights.shape, "F16")
    np.testing.assert_array_equal(checkpoint.read(name), weights)
    assert checkpoint.read(name).flags.c_contiguous
    for start, stop in ((0, 0), (0, 1), (5, 30), (OUTPUTS - 1, OUTPUTS)):
        np.testing.assert_array_equal(checkpoint.read_rows(name, start, stop), weights[start:stop])
    np.testing.assert_array_equal(checkpoint.read("model.norm.weight"), np.arange(8))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("form", ["gptq", "gptq_v2"])
def test_gptq(tmp_path: Path, bits: int, form: str) -> None:
    codes, zeros, scales = numbers(bits)
    parts = gptq(codes, zeros, bits, offset=1 if form == "gptq" else 0) | {"scales": scales}
    fields = {"quant_method": "gptq", "bits": bits, "group_size": GROUP, "checkpoint_format": form}
    weights = expected(codes, zeros, scales, [k // GROUP for k in range(INPUTS)])
    check(write(tmp_path, parts, fields), weights, f"GPTQ, {bits} bits in groups of {GROUP}")


def test_gptq_in_the_order_of_activations(tmp_path: Path) -> None:
    codes, zeros, scales = numbers(4)
    groups = np.random.default_rng(5).permutation(INPUTS) // GROUP
    parts = gptq(codes, zeros, 4, offset=1)
    parts |= {"scales": scales, "g_idx": groups.astype(np.int32)}
    fields = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": True}
    weights = expected(codes, zeros, scales, groups.tolist())
    check(write(tmp_path, parts, fields), weights, f"GPTQ, 4 bits in groups of {GROUP}")


def test_gptq_of_whole_rows(tmp_path: Path) -> None:
    codes, zeros, scales = numbers(4, group=INPUTS)
    parts = gptq(codes, zeros, 4, offset=1) | {"scales": scales}
    fields = {"quant_method": "gptq", "bits": 4, "group_size": -1}
    weights = expected(codes, zeros, scales, [0] * INPUTS)
    check(write(tmp_path, parts, fields), weights, "GPTQ, 4 bits in whole rows")


def test_awq(tmp_path: Path) -> None:
    codes, zeros, scales = numbers(4)
    parts = awq(codes, zeros) | {"scales": scales}
    fields = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "GEMM"}
    weights = expected(codes, zeros, scales, [k // GROUP for k in range(INPUTS)])
    check(write(tmp_path, parts, fields), weights, f"AWQ, 4 bits in groups of {GROUP}")


def whole() -> tuple[Tensors, dict[str, object]]:
    codes, zeros, scales = numbers(4)
    parts = gptq(codes, zeros, 4, offset=1) | {"scales": scales}
    parts["g_idx"] = (np.arange(INPUTS) // GROUP).astype(np.int32)
    return parts, {"quant_method": "gptq", "bits": 4, "group_size": GROUP}


def shorten(parts: Tensors, fields: dict[str, object]) -> None:
    fields["bits"] = 3
    parts["qweight"] = parts["qweight"][:-1]


Damage = Callable[[Tensors, dict[str, object]], object]
BAD: list[tuple[Damage, type[Exception], str]] = [
    (lambda t, f: f.update(bits=5), UnsupportedError, "has bits 5, expected 2 or 3 or 4 or 8"),
    (lambda t, f: f.update(bits="4"), UnsupportedError, "has bits '4'"),
    (lambda t, f: f.update(group_size=0), UnsupportedError, "has group_size 0"),
    (lambda t, f: f.update(checkpoint_format="marlin"), UnsupportedError, "format 'marlin'"),
    (lambda t, f: f.update(quant_method="awq", version="gemv"), UnsupportedError, "'gemv'"),
    (lambda t, f: f.update(group_size=48), BadFileError, "q_proj.scales has shape [3, 64]"),
    (lambda t, f: t.pop("scales"), BadFileError, "holds no tensor"),
    (lambda t, f: t.update(qzeros=t["qzeros"][:1]), BadFileError, "qzeros has shape [1, 8]"),
    (lambda t, f: t.update(qweight=t["qweight"].astype(np.int64)), BadFileError, "is I64"),
    (lambda t, f: t.update(g_idx=t["g_idx"] + 1), BadFileError, "holds 1 to 3, expected 0 to 2"),
    (lambda t, f: t.update(g_idx=t["g_idx"][1:]), BadFileError, "g_idx has shape [95]"),
    (lambda t, f: shorten(t, f), BadFileError, "expected whole 32-bit words of 3-bit codes"),
    (lambda t, f: t["scales"].fill(np.nan), BadFileError, "NaN"),
]


@pytest.mark.parametrize(("damage", "error", "words"), BAD, ids=[words for *_, words in BAD])
def test_damage_makes_one_sentence(
    tmp_path: Path, damage: Damage, error: type[Exception], words: str
) -> None:
    parts, fields = whole()
    damage(parts, fields)
    with pytest.raises(error) as caught:
        open_checkpoint(write(tmp_path, parts, fields)).read(f"{MODULE}.weight")
    text = str(caught.value)
    assert words in text and "\n" not in text and text.endswith("."), text


def save_gptq(folder: Path) -> Path:
    """Write a whole tiny model whose linears are random GPTQ codes."""
    rng, config = np.random.default_rng(3), tiny_config()
    tensors = {}
    for name, value in tiny_tensors(config).items():
        if not name.endswith("_proj.weight"):
            tensors[name] = value
            continue
        (outputs, inputs), module = value.shape, name.removesuffix(".weight")
        words = {"qweight": (inputs // 8, outputs), "qzeros": (inputs // 8, outputs // 8)}
        for part, shape in words.items():
            raw = rng.integers(-(1 << 31), 1 << 31, shape, np.int64)
            tensors[f"{module}.{part}"] = raw.astype(np.int32)
        scales = rng.uniform(0.01, 0.02, (inputs // 8, outputs))
        tensors[f"{module}.scales"] = scales.astype(np.float16)
    fields = {"quant_method": "gptq", "bits": 4, "group_size": 8}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": fields}))
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_the_plan_says_that_codes_are_fitted_anew(tmp_path: Path) -> None:
    source = save_gptq(tmp_path / "gptq")
    child = call_here("quantize", source, "--method", "alternating", "-o", "out", cwd=tmp_path)
    assert child.returncode == 0, child.stderr
    assert "GPTQ, 4 bits in groups of 8: dequantized, then fitted anew" in child.stderr
    packed = open_packed(tmp_path / "out")
    assert packed.quantization["quant_method"] == "shiftadd_bcq"
    name = f"{MODULE}.weight"
    true = open_checkpoint(source).read(name)
    error = np.square(DequantizedModel(packed).read(name) - true).sum() / np.square(true).sum()
    assert error < 0.02  # 4 planes; a wrong order of codes would make it near 1


def test_other_methods_are_refused_by_their_name(tmp_path: Path) -> None:
    parts, _ = whole()
    folder = write(tmp_path, parts, {"quant_method": "compressed-tensors"})
    with pytest.raises(
        UnsupportedError, match=r"'compressed-tensors'\), expected float weights, GPTQ"
    ):
        plan(open_checkpoint(folder), QuantizeSettings())
