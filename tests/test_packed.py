"""Contract 1: what is written is read back; whatever is damaged is refused in a sentence."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import save_tiny

from shiftadd_tvm import bcq
from shiftadd_tvm.errors import BadFileError, ShiftAddError, UnsupportedError
from shiftadd_tvm.packed import is_packed, open_packed
from shiftadd_tvm.packed_writer import round_embedding
from shiftadd_tvm.quantization import quantize
from shiftadd_tvm.settings import QuantizeSettings
from shiftadd_tvm.tensorfile import TensorFile, write_tensors

SHARD = "model-00001-of-00003.safetensors"
LAST = "model-00003-of-00003.safetensors"
Q = "model.layers.0.self_attn.q_proj"
K = "model.layers.0.self_attn.k_proj"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    # 92 inputs: no multiple of 8, so that there are pad bits
    source = save_tiny(folder / "tiny", dtype="F16", hidden_size=92, attention_bias=True)
    fields = {"bits_per_module": {"self_attn.k_proj": 2}, "embedding_bits": 8}
    quantize(
        source, folder / "packed", QuantizeSettings(bits=3, rounds=1, max_rotation=4, **fields)
    )
    return folder / "packed"


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "packed"))


def rewrite(path: Path, change: Callable[[dict[str, tuple[str, np.ndarray]]], None]) -> None:
    """Write a safetensors file anew with its tensors changed."""
    file = TensorFile(path)
    tensors = {name: (file.dtype(name), file.raw(name).copy()) for name in file.names()}
    change(tensors)
    write_tensors(path, [(name, *tensor) for name, tensor in sorted(tensors.items())])


def set_config(folder: Path, key: str, value: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"][key] = value
    (folder / "config.json").write_text(json.dumps(config))


def test_round_trip(original: Path) -> None:
    model = open_packed(original)
    assert is_packed(original) and model.path == original
    assert model.group(K) == (Q, K, Q.replace("q_proj", "v_proj"))
    assert model.group("model.layers.1.mlp.down_proj") == ("model.layers.1.mlp.down_proj",)
    first, second = model.weight(Q), model.weight(K)
    assert (first.bits, second.bits) == (3, 2)
    assert first.shape == (96, 92)
    assert first.rotation is not None and second.rotation is not None
    assert first.rotation.signs.ctypes.data == second.rotation.signs.ctypes.data
    assert isinstance(second.scales, bcq.SeparableScales)
    assert second.scales.column_terms.ctypes.data == model.raw(f"{Q}.column_terms").ctypes.data
    assert f"{K}.column_terms" not in TensorFile(original / SHARD)
    down = model.weight("model.layers.0.mlp.down_proj")
    assert down.rotation is not None and down.rotation.block == 4
    assert model.dtype(f"{Q}.bias") == "F16" and model.read(f"{Q}.bias").shape == (96,)
    assert not model.raw(f"{Q}.planes").flags.writeable
    assert sorted(model.tokenizer_files()) == ["tokenizer.json", "tokenizer_config.json"]
    assert model.golden().logits.shape == (4, 16, 259)


def test_effective_bits_count_every_byte_once(original: Path) -> None:
    model = open_packed(original)
    suffixes = ("planes", "row_terms", "column_terms", "plane_terms", "signs")
    total = 0
    for shard in original.glob("model-*.safetensors"):
        file = TensorFile(shard)
        total += sum(file.nbytes(name) for name in file.names() if name.endswith(suffixes))
    weights = sum(np.prod(model.weight(linear).shape) for linear in model.linears())
    assert model.linear_bytes() == total
    assert model.effective_bits() == total * 8 / weights


def test_eight_bit_embeddings(original: Path) -> None:
    model = open_packed(original)
    name = "model.embed_tokens.weight"
    assert (model.dtype(name), model.dtype(f"{name}_scale")) == ("I8", "F32")
    expected = model.raw(name).astype(np.float32) * model.raw(f"{name}_scale")[:, None]
    np.testing.assert_array_equal(model.read(name), expected)
    np.testing.assert_array_equal(model.read_rows(name, 3, 9), expected[3:9])


def test_embedding_rounding_is_half_to_even() -> None:
    rows = np.array([[127, 0.5, 1.5, -2.5], [0, 0, 0, 0], [-254, 3, 1, -1]], np.float32)
    levels, scales = round_embedding(rows)
    np.testing.assert_array_equal(levels, [[127, 0, 2, -2], [0, 0, 0, 0], [-127, 2, 0, 0]])
    np.testing.assert_array_equal(scales, np.array([1, 0, 2], np.float32))


def test_not_packed(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "tiny")
    assert not is_packed(source) and not is_packed(tmp_path / "nothing")
    with pytest.raises(BadFileError, match="is not a packed model"):
        open_packed(source)


def drop(name: str) -> Callable[[dict[str, tuple[str, np.ndarray]]], None]:
    return lambda tensors: tensors.pop(name) and None


def replace(name: str, dtype: str, array: np.ndarray) -> Callable[..., None]:
    return lambda tensors: tensors.update({name: (dtype, array)})


def poke(name: str, index: object, value: object) -> Callable[..., None]:
    def change(tensors: dict[str, tuple[str, np.ndarray]]) -> None:
        tensors[name][1][index] = value

    return change


SCALE = "model.embed_tokens.weight_scale"
DAMAGES = {
    "missing": (SHARD, drop(f"{Q}.planes"), f"{Q}.planes"),
    "missing norm": (LAST, drop("model.norm.weight"), "model.norm.weight"),
    "extra": (SHARD, replace("model.extra", "U8", np.zeros(3, np.uint8)), "model.extra"),
    "shape": (SHARD, replace(f"{K}.planes", "U8", np.zeros((2, 48, 11), np.uint8)), "[2, 48, 12]"),
    "bits": (SHARD, replace(f"{K}.planes", "U8", np.zeros((3, 48, 12), np.uint8)), "[3, 48, 12]"),
    "mistyped": (SHARD, replace(f"{Q}.row_terms", "I8", np.zeros((96, 3), np.int8)), "dtype I8"),
    "integer norm": (LAST, replace("model.norm.weight", "I32", np.ones(92, "<i4")), "dtype I32"),
    "float embedding": (
        LAST,
        replace("model.embed_tokens.weight", "F32", np.ones((259, 92), "<f4")),
        "expected I8",
    ),
    "pad bits": (SHARD, poke(f"{Q}.planes", (1, 5, 11), 0xFF), "past its last input"),
    "NaN bias": (SHARD, poke(f"{Q}.bias", 3, np.nan), "NaN or Inf"),
    "infinite scale": (LAST, poke(SCALE, 258, np.inf), "NaN or Inf"),
    "NaN golden": ("golden.safetensors", poke("logits", (0, 0, 0), np.nan), "NaN or Inf"),
    "golden ids": ("golden.safetensors", poke("ids", (3, 15), 259), "from 0 to 258"),
    "negative ids": ("golden.safetensors", poke("ids", (0, 0), -1), "from 0 to 258"),
    "golden shape": (
        "golden.safetensors",
        replace("logits", "F32", np.zeros((4, 16, 258), "<f4")),
        "[4, 16, 258]",
    ),
    "golden dtype": ("golden.safetensors", replace("ids", "I64", np.zeros((4, 16), "<i8")), "I64"),
    "golden name": ("golden.safetensors", drop("ids"), "expected ids and logits"),
    "empty golden": (
        "golden.safetensors",
        lambda t: t.update(
            ids=("I32", np.zeros((0, 16), "<i4")), logits=("F32", np.zeros((0, 16, 259), "<f4"))
        ),
        "token ids",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_tensors(folder: Path, damage: str) -> None:
    shard, change, sentence = DAMAGES[damage]
    rewrite(folder / shard, change)
    with pytest.raises(BadFileError) as caught:
        open_packed(folder)
    assert sentence in str(caught.value) and "again" in str(caught.value)


CONFIG_DAMAGES = {
    "version": [0, "1", None, 1.0, True],
    "kind": ["torch", None],
    "bits": [3, "3", None],
    "bits_per_module": [{}, [], None, {"model.layers.0.self_attn.q_proj": 3}],
    "scales": [
        None,
        {},
        {"format": "row"},
        {"format": "row-group"},
        {"format": "separable", "rows": 1},
    ]
    + [{"format": "row-group", "rows": 1, "columns": 6}, {"format": [1]}],
    "terms": [None, {}, {"row_terms": 3, "column_terms": 3, "plane_terms": 4}, {"block_terms": 3}],
    "rotation": [1, {}, {"kind": "hadamard", "max_block": 8}, {"kind": "fourier", "max_block": 4}]
    + [{"kind": "hadamard", "max_block": True}, {"kind": "hadamard", "max_block": 1 << 70}],
    "shared_input_groups": [None, [], [["a", "b"]]],
    "embedding_bits": [4, None, "8", 16],
}


@pytest.mark.parametrize("key", CONFIG_DAMAGES)
def test_damaged_config(folder: Path, key: str) -> None:
    for value in CONFIG_DAMAGES[key]:
        set_config(folder, key, value)
        with pytest.raises(BadFileError):
            open_packed(folder)


def test_a_newer_version_says_so(folder: Path) -> None:
    set_config(folder, "version", 2)
    with pytest.raises(
        UnsupportedError, match="version 2, this shiftadd-tvm reads up to version 1"
    ):
        open_packed(folder)


def test_other_bits_than_the_planes(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    bits = config["quantization_config"]["bits_per_module"]
    set_config(folder, "bits_per_module", {**bits, Q: 1})
    with pytest.raises(BadFileError):
        open_packed(folder)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", "{"),
        ("config.json", "[]"),
        ("config.json", "\udcff"),
        ("config.json", "[" * 100_000),
        ("model.safetensors.index.json", "{}"),
        ("model.safetensors.index.json", '{"weight_map": {"a": 1}}'),
        ("model.safetensors.index.json", '{"weight_map": {"a": "../../etc/passwd"}}'),
        ("model.safetensors.index.json", '{"weight_map": {"a": "nothing.safetensors"}}'),
        ("model.safetensors.index.json", '{"weight_map": {}}'),
        (SHARD, ""),
        ("golden.safetensors", "\xff" * 40),
    ],
)
def test_damaged_files(folder: Path, name: str, text: str) -> None:
    (folder / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(BadFileError):
        open_packed(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", SHARD, LAST])
def test_truncated_files(folder: Path, name: str) -> None:
    whole = (folder / name).read_bytes()
    for size in (0, 7, 8, 100, len(whole) // 2, len(whole) - 2):
        (folder / name).write_bytes(whole[:size])
        with pytest.raises(BadFileError):
            open_packed(folder)
    (folder / name).unlink()
    with pytest.raises(BadFileError):
        open_packed(folder)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.sampled_from(["config.json", "model.safetensors.index.json", SHARD, "golden.safetensors"]),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 7)), min_size=1, max_size=3),
)
def test_flipped_bits_never_crash(
    folder: Path, original: Path, name: str, flips: list[tuple[float, int]]
) -> None:
    """A flip in the weights is a different model; anywhere else it is found, or means nothing."""
    data = bytearray((original / name).read_bytes())
    header = 8 + int.from_bytes(data[:8], "little") if name.endswith(".safetensors") else len(data)
    for place, bit in flips:
        data[int(place * (header - 1))] ^= 1 << bit
    (folder / name).write_bytes(data)
    try:
        model = open_packed(folder)
        for linear in model.linears():
            assert np.isfinite(bcq.dequantize(model.weight(linear))).all()
        for plain in model.names():
            model.read(plain)
    except ShiftAddError as error:
        assert str(error).endswith(".")
    finally:
        shutil.copy(original / name, folder / name)
