"""Source checkpoints: every kind opens to the same tensors, every damage to one clear sentence."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from shiftadd_tvm.checkpoint import open_checkpoint
from shiftadd_tvm.errors import BadFileError, UnsupportedError, UsageError
from shiftadd_tvm.hf_checkpoint import INDEX_NAME

CONFIG = {"model_type": "llama", "hidden_size": 8, "unknown_key": [1, 2]}


def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "model.embed_tokens.weight": rng.standard_normal((11, 8)).astype(np.float32),
        "model.layers.0.mlp.up_proj.weight": rng.standard_normal((5, 8)).astype(np.float16),
        "model.norm.weight": np.ones(8, np.float32),
        "scale": np.array(3.0, np.float32),
    }


def write_folder(folder: Path, config: object = CONFIG) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors(), folder / "model.safetensors")
    return folder


def write_sharded(folder: Path) -> Path:
    """Write the same tensors in two shards and an index."""
    write_folder(folder)
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for number, names in enumerate((sorted(tensors())[:2], sorted(tensors())[2:]), 1):
        shard = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors()[name] for name in names}, folder / shard)
        weight_map |= dict.fromkeys(names, shard)
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def check_tensors(source: Path, config: Path | None = None) -> None:
    checkpoint = open_checkpoint(source, config)
    assert checkpoint.config == CONFIG
    assert checkpoint.path == source
    assert checkpoint.names() == sorted(tensors())
    for name, expected in tensors().items():
        found = checkpoint.read(name)
        assert found.dtype == np.float32 and found.flags.c_contiguous
        assert checkpoint.shape(name) == expected.shape == found.shape
        assert checkpoint.dtype(name) == ("F16" if expected.dtype == np.float16 else "F32")
        np.testing.assert_array_equal(found, expected.astype(np.float32))
        if expected.ndim:
            np.testing.assert_array_equal(checkpoint.read_rows(name, 2, 5), found[2:5])


def sentence(error: type[Exception], source: Path | str, config: Path | None = None) -> str:
    """Return the one-line message with which opening and reading everything fails."""
    with pytest.raises(error) as caught:
        checkpoint = open_checkpoint(source, config)
        for name in checkpoint.names():
            checkpoint.read(name)
    text = str(caught.value)
    assert "\n" not in text and text.endswith("."), text
    return text


def test_folder(tmp_path: Path) -> None:
    check_tensors(write_folder(tmp_path))


def test_sharded_folder(tmp_path: Path) -> None:
    check_tensors(write_sharded(tmp_path))


def test_single_file_beside_its_config(tmp_path: Path) -> None:
    check_tensors(write_folder(tmp_path) / "model.safetensors")


def test_shard_opens_the_whole_set(tmp_path: Path) -> None:
    check_tensors(write_sharded(tmp_path) / "model-00002-of-00002.safetensors")


@pytest.mark.parametrize("given", ["", "config.json"])
def test_config_from_elsewhere(tmp_path: Path, given: str) -> None:
    folder = write_folder(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (folder / "config.json").rename(tmp_path / "b" / "config.json")
    check_tensors(folder / "model.safetensors", tmp_path / "b" / given)


def test_one_file_of_another_name(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    check_tensors(folder)


def test_local_path_wins_over_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "org" / "name")
    monkeypatch.chdir(tmp_path)
    check_tensors(Path("org/name"))


def test_tokenizer_files_are_verbatim(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    (folder / "tokenizer.json").write_bytes(b'{ "odd":  1}\r\n')
    (folder / "vocab.json").write_bytes(b"{}")
    (folder / "unrelated.json").write_bytes(b"{}")
    files = open_checkpoint(folder).tokenizer_files()
    assert files == {"tokenizer.json": b'{ "odd":  1}\r\n', "vocab.json": b"{}"}


def test_source_hash_follows_content_not_place(tmp_path: Path) -> None:
    first = open_checkpoint(write_folder(tmp_path / "a")).source_hash()
    assert first == open_checkpoint(write_folder(tmp_path / "b")).source_hash()
    other = open_checkpoint(write_folder(tmp_path / "c", CONFIG | {"hidden_size": 9}))
    assert first != other.source_hash()
    changed = tmp_path / "a" / "model.safetensors"
    changed.write_bytes(changed.read_bytes()[:-1] + b"\x01")
    assert first != open_checkpoint(tmp_path / "a").source_hash()


# Hostile files, named as attacks.


def test_missing_path() -> None:
    assert "does not exist" in sentence(BadFileError, "no-such-folder")
    assert "does not exist" in sentence(BadFileError, "a/b/model.safetensors")


def test_hub_name_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert "is no local path" in sentence(BadFileError, "no-such-org/no-such-model")


def test_hub_name_in_the_local_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    kept = tmp_path / "models--org--name"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("0" * 40)
    write_folder(kept / "snapshots" / ("0" * 40))
    check_tensors(Path("org/name"))


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".PKL"])
def test_pickle_is_refused_with_the_way_out(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"pytorch_model{suffix}"
    path.write_bytes(b"\x80\x02cos\nsystem\n.")
    text = sentence(BadFileError, path)
    assert "pickle" in text and "save_pretrained" in text


def test_folder_with_only_a_pickle(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "pickle" in sentence(BadFileError, folder)


def test_folder_with_only_a_gguf_names_it(tmp_path: Path) -> None:
    (write_folder(tmp_path) / "model.safetensors").rename(tmp_path / "m.gguf")
    assert str(tmp_path / "m.gguf") in sentence(UsageError, tmp_path)


def test_folder_without_weights(tmp_path: Path) -> None:
    (write_folder(tmp_path) / "model.safetensors").unlink()
    assert "holds no weights" in sentence(BadFileError, tmp_path)


def test_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "model.h5").write_bytes(b"x")
    assert "expected a folder" in sentence(UsageError, tmp_path / "model.h5")


def test_missing_config(tmp_path: Path) -> None:
    (write_folder(tmp_path) / "config.json").unlink()
    text = sentence(BadFileError, tmp_path)
    assert "config.json does not exist" in text and "--config" in text


@pytest.mark.parametrize("damage", ["{", "[1]", "", "\xff", "[" * 100_000])
def test_damaged_config(tmp_path: Path, damage: str) -> None:
    (write_folder(tmp_path) / "config.json").write_bytes(damage.encode("latin-1"))
    assert "config.json" in sentence(BadFileError, tmp_path)


def test_missing_shard(tmp_path: Path) -> None:
    (write_sharded(tmp_path) / "model-00001-of-00002.safetensors").unlink()
    assert "model-00001-of-00002.safetensors is missing" in sentence(BadFileError, tmp_path)


def test_lone_shard_without_index(tmp_path: Path) -> None:
    (write_sharded(tmp_path) / INDEX_NAME).unlink()
    shard = tmp_path / "model-00001-of-00002.safetensors"
    assert "one shard of several" in sentence(BadFileError, shard)
    assert "add the index" in sentence(BadFileError, tmp_path)


def edit_index(folder: Path, weight_map: object) -> None:
    (folder / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))


def test_index_names_a_tensor_that_the_shard_lacks(tmp_path: Path) -> None:
    edit_index(write_sharded(tmp_path), {"ghost": "model-00001-of-00002.safetensors"})
    assert "tensor ghost" in sentence(BadFileError, tmp_path)


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/passwd", 7, None])
def test_index_leads_out_of_its_folder(tmp_path: Path, shard: object) -> None:
    edit_index(write_sharded(tmp_path), {"scale": shard})
    assert "a file beside it" in sentence(BadFileError, tmp_path)


@pytest.mark.parametrize("weight_map", [[], {}, None, "x"])
def test_index_without_a_map(tmp_path: Path, weight_map: object) -> None:
    edit_index(write_sharded(tmp_path), weight_map)
    assert "weight_map" in sentence(BadFileError, tmp_path)


def test_truncated_anywhere(tmp_path: Path) -> None:
    path = write_folder(tmp_path) / "model.safetensors"
    whole = path.read_bytes()
    for size in (0, 4, 8, 50, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert str(path) in sentence(BadFileError, path)


def test_oversized_header_and_trailing_garbage(tmp_path: Path) -> None:
    path = write_folder(tmp_path) / "model.safetensors"
    whole = path.read_bytes()
    for content in (struct.pack("<Q", 1 << 62) + whole[8:], whole + b"garbage", b"\x00" * 64):
        path.write_bytes(content)
        assert str(path) in sentence(BadFileError, path)


@pytest.mark.parametrize(
    ("dtype", "error", "words"),
    [
        ("F8_E4M3", UnsupportedError, "tensor a is FP8 (F8_E4M3), which is not read"),
        ("F4", UnsupportedError, "tensor a is FP4 (F4)"),
        ("C64", BadFileError, "tensor a has dtype 'C64'"),
    ],
)
def test_unsupported_dtype(tmp_path: Path, dtype: str, error: type[Exception], words: str) -> None:
    header = b'{"a":{"dtype":"%s","shape":[2],"data_offsets":[0,2]}}' % dtype.encode()
    path = write_folder(tmp_path) / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\x00\x00")
    assert words in sentence(error, path)


def test_nan_and_inf_are_counted(tmp_path: Path) -> None:
    values = np.zeros((2, 4), np.float32)
    values[0, 0], values[1, 1:3] = np.nan, np.inf
    save_file({"w": values}, write_folder(tmp_path) / "model.safetensors")
    assert "tensor w holds 1 NaN and 2 Inf among 8" in sentence(BadFileError, tmp_path)


def test_unknown_tensor(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_folder(tmp_path))
    assert "lm_head.weight" not in checkpoint
    with pytest.raises(BadFileError, match="holds no tensor lm_head.weight"):
        checkpoint.read("lm_head.weight")


def test_single_bit_flips_never_crash(tmp_path: Path) -> None:
    path = write_folder(tmp_path) / "model.safetensors"
    whole = path.read_bytes()
    rng = np.random.default_rng(1)
    for position in rng.integers(0, len(whole), 150):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(flipped)
        try:
            checkpoint = open_checkpoint(path)
            for name in checkpoint.names():
                checkpoint.read(name)
        except BadFileError:
            continue
