"""The verb `quantize`: same bytes, resumable, bad input in a sentence."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from models import save_tiny, tiny_config, tiny_tensors, write_checkpoint

from shiftadd_tvm import bcq
from shiftadd_tvm.checkpoint import open_checkpoint
from shiftadd_tvm.dequantized import DequantizedModel
from shiftadd_tvm.errors import BadFileError, OutputError, ShiftAddError, UnsupportedError
from shiftadd_tvm.packed import open_packed
from shiftadd_tvm.quantization import quantize
from shiftadd_tvm.quantize_plan import plan
from shiftadd_tvm.reference import ReferenceModel
from shiftadd_tvm.resume import STATE
from shiftadd_tvm.settings import QuantizeSettings

SETTINGS = QuantizeSettings(bits=3, bits_per_module={"self_attn.v_proj": 4}, rounds=2)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("source") / "tiny", dtype="BF16")


@pytest.fixture(scope="module")
def packed(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("packed") / "whole"
    quantize(checkpoint, output, SETTINGS)
    return output


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_report_and_packed_model_agree(checkpoint: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    report = quantize(checkpoint, tmp_path / "out", SETTINGS, progress=lambda *a: seen.append(a))
    model = open_packed(tmp_path / "out")
    fields = json.loads(json.dumps(report.to_dict()))
    assert (
        fields["effective_bits"] == model.effective_bits() == report.linear_bytes * 8 / seen[-1][1]
    )
    assert fields["nominal_bits"] == model.quantization["bits"]
    assert [layer["name"] for layer in fields["layers"]] == model.linears()
    assert {layer["bits"] for layer in fields["layers"]} == {3, 4}
    assert all(layer["output_error"] is None for layer in fields["layers"])
    assert report.seconds > 0 and report.peak_memory_bytes > 1 << 20
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert seen[-1][0] == seen[-1][1]
    source = open_checkpoint(checkpoint)
    for layer in report.layers:
        true = source.read(f"{layer.name}.weight").astype(np.float64)
        error = (
            np.square(bcq.dequantize(model.weight(layer.name)) - true).sum() / np.square(true).sum()
        )
        assert layer.weight_error == pytest.approx(error, rel=1e-4)
        assert layer.weight_error < (0.02 if layer.bits == 4 else 0.05)


def test_same_bytes_for_any_place_and_number_of_threads(
    checkpoint: Path, packed: Path, tmp_path: Path
) -> None:
    threads = torch.get_num_threads()
    other = tmp_path / "elsewhere" / "tiny"
    shutil.copytree(checkpoint, other)
    for count in (1, 3):
        torch.set_num_threads(count)
        quantize(other, tmp_path / f"out{count}", SETTINGS)
        assert contents(tmp_path / f"out{count}") == contents(packed)
    torch.set_num_threads(threads)


def test_another_seed_gives_other_signs(checkpoint: Path, packed: Path, tmp_path: Path) -> None:
    quantize(checkpoint, tmp_path / "out", QuantizeSettings(bits=3, seed=1))
    name = "model.layers.0.self_attn.q_proj.signs"
    assert (open_packed(tmp_path / "out").raw(name) != open_packed(packed).raw(name)).any()


class Interrupt:
    """Raises KeyboardInterrupt when the linear `at` is reached; remembers what was worked on."""

    def __init__(self, at: str = "") -> None:
        self.at, self.seen = at, set[str]()

    def __call__(self, done: int, total: int, what: str) -> None:
        self.seen.add(what)
        if what == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("at", ["model.layers.1.mlp.down_proj", "golden logits"])
def test_resume_gives_the_same_bytes(
    checkpoint: Path, packed: Path, tmp_path: Path, at: str
) -> None:
    output = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        quantize(checkpoint, output, SETTINGS, progress=Interrupt(at))
    assert not output.exists()
    first = tmp_path / "out.partial" / "model-00001-of-00003.safetensors"
    written = first.stat().st_mtime_ns
    again = Interrupt()
    report = quantize(checkpoint, output, SETTINGS, progress=again)
    assert not any(name.startswith("model.layers.0.") for name in again.seen)
    assert (output / first.name).stat().st_mtime_ns == written
    assert contents(output) == contents(packed)
    assert [layer.name for layer in report.layers] == open_packed(output).linears()
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("change", ["settings", "source", "no resume", "damaged state"])
def test_a_changed_run_starts_afresh(checkpoint: Path, tmp_path: Path, change: str) -> None:
    output, source, settings = tmp_path / "out", tmp_path / "tiny", SETTINGS
    shutil.copytree(checkpoint, source)
    with pytest.raises(KeyboardInterrupt):
        quantize(source, output, settings, progress=Interrupt("golden logits"))
    if change == "settings":
        settings = QuantizeSettings(bits=2, rounds=1)
    if change == "source":
        save_tiny(source, seed=9)
    if change == "damaged state":
        (tmp_path / "out.partial" / STATE).write_text('{"identity": {')
    again = Interrupt()
    quantize(source, output, settings, resume=change != "no resume", progress=again)
    assert "model.layers.0.self_attn.q_proj" in again.seen
    quantize(source, tmp_path / "fresh", settings)
    assert contents(output) == contents(tmp_path / "fresh")


def test_an_existing_output_needs_force(checkpoint: Path, packed: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    with pytest.raises(OutputError, match="already exists"):
        quantize(checkpoint, output, SETTINGS)
    with pytest.raises(OutputError, match="not replaced, even with --force"):
        quantize(checkpoint, output, SETTINGS, force=True)
    shutil.copytree(packed, output, dirs_exist_ok=True)
    quantize(checkpoint, output, QuantizeSettings(bits=2, rounds=1), force=True)
    assert open_packed(output).quantization["bits"] == 2


def test_plan_tells_what_will_be_written(checkpoint: Path, packed: Path, tmp_path: Path) -> None:
    plain = plan(checkpoint, SETTINGS)
    model = open_packed(packed)
    assert plain["effective_bits"] == model.effective_bits()
    assert plain["linear_bytes"] == model.linear_bytes()
    assert plain["nominal_bits"] == model.quantization["bits"]
    sizes = sum(file.stat().st_size for file in packed.glob("model-*.safetensors"))
    assert 0.9 * sizes < float(str(plain["estimated_bytes"])) < sizes
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("tied", [True, False])
def test_golden_logits_are_those_of_the_dequantized_model(tmp_path: Path, tied: bool) -> None:
    source = save_tiny(tmp_path / "tiny", tie_word_embeddings=tied, attention_bias=True)
    quantize(source, tmp_path / "out", QuantizeSettings(bits=3, embedding_bits=8, rounds=1))
    model = open_packed(tmp_path / "out")
    golden = model.golden()
    assert golden.ids.shape == (4, 16) and len(np.unique(golden.ids)) > 10
    reference = ReferenceModel(DequantizedModel(model))
    hidden = reference.hidden(golden.ids.astype(np.int64))
    found = torch.stack([reference.logits(rows) for rows in hidden]).numpy()
    np.testing.assert_allclose(found, golden.logits, rtol=1e-4, atol=1e-4)


def test_without_a_tokenizer_the_prompts_are_random(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "tiny", tiny_config(), tiny_tensors(tiny_config()))
    quantize(source, tmp_path / "out", QuantizeSettings(rounds=1))
    assert len(np.unique(open_packed(tmp_path / "out").golden().ids)) > 20


def damage(folder: Path, name: str, change: str) -> None:
    config = tiny_config()
    tensors = tiny_tensors(config)
    if change == "missing":
        del tensors[name]
    elif change == "transposed":
        tensors[name] = tensors[name].T.copy()
    else:
        tensors[name].flat[7] = {"nan": np.nan, "inf": -np.inf, "huge": 1e38}[change]
    write_checkpoint(folder, config, tensors)


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("model.norm.weight", "missing", "no tensor model.norm.weight"),
        ("model.layers.1.mlp.up_proj.weight", "missing", "no tensor model.layers.1.mlp.up_proj"),
        ("model.layers.1.mlp.up_proj.weight", "transposed", r"[96, 200], expected [200, 96]"),
        ("model.layers.1.mlp.down_proj.weight", "nan", "model.layers.1.mlp.down_proj.weight"),
        ("model.layers.0.input_layernorm.weight", "inf", "input_layernorm.weight"),
        ("model.embed_tokens.weight", "nan", "model.embed_tokens.weight"),
        (
            "model.layers.0.self_attn.q_proj.weight",
            "huge",
            "q_proj.weight holds values up to 1e+38",
        ),
    ],
)
def test_damaged_tensors(tmp_path: Path, name: str, change: str, sentence: str) -> None:
    damage(tmp_path / "tiny", name, change)
    with pytest.raises(BadFileError, match=re.escape(sentence)):
        quantize(tmp_path / "tiny", tmp_path / "out", QuantizeSettings(rounds=1))
    assert not (tmp_path / "out").exists()
    if change in ("missing", "transposed"):  # found before any work
        assert not (tmp_path / "out.partial").exists()


def test_a_quantized_source_is_refused(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="quantized already"):
        quantize(packed, tmp_path / "out", SETTINGS)


def test_a_foreign_tokenizer_is_refused(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "tiny")
    settings = QuantizeSettings(rounds=1)
    (source / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(BadFileError, match="tokenizer.json cannot be read"):
        quantize(source, tmp_path / "out", settings)
    other = save_tiny(tmp_path / "other", vocab_size=320)
    shutil.copy(other / "tokenizer.json", source / "tokenizer.json")
    with pytest.raises(BadFileError, match="expected ids below the vocab_size 259"):
        quantize(source, tmp_path / "out", settings)


def test_tensors_of_another_model_stop_before_work(tmp_path: Path) -> None:
    tensors = tiny_tensors(tiny_config())
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(12, np.float32)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]  # tied, and stored all the same
    source = write_checkpoint(tmp_path / "tiny", tiny_config(), tensors)
    plan(source, SETTINGS)
    tensors["model.layers.0.mlp.experts.weight"] = np.ones((3, 3), np.float32)
    write_checkpoint(source, tiny_config(), tensors)
    with pytest.raises(UnsupportedError, match="experts.weight is not part of a llama model"):
        quantize(source, tmp_path / "out", QuantizeSettings(rounds=0))
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("scale_format", ["row-group", "column-wise", "block-wise"])
def test_every_scale_format_round_trips(
    checkpoint: Path, tmp_path: Path, scale_format: str
) -> None:
    settings = QuantizeSettings(bits=2, scale_format=scale_format, rounds=1, max_rotation=0)
    report = quantize(checkpoint, tmp_path / "out", settings)
    model = open_packed(tmp_path / "out")
    assert {"rows", "columns", "format"} == set(model.quantization["scales"])  # type: ignore[call-overload]
    assert all(layer.weight_error < 0.4 for layer in report.layers)
    dense = DequantizedModel(model)
    name = model.linears()[0]
    whole = bcq.dequantize(model.weight(name))
    np.testing.assert_array_equal(dense.read(f"{name}.weight"), whole)
    np.testing.assert_array_equal(dense.read_rows(f"{name}.weight", 5, 77), whole[5:77])


def test_a_config_that_transformers_refuses_is_found_before_work(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "tiny", hidden_size=90)  # no multiple of the number of heads
    with pytest.raises(BadFileError, match="transformers cannot build the model"):
        quantize(source, tmp_path / "out", SETTINGS)
    assert not (tmp_path / "out.partial").exists()


def test_no_crash_but_sentences(tmp_path: Path) -> None:
    with pytest.raises(ShiftAddError, match="does not exist"):
        quantize(tmp_path / "nothing", tmp_path / "out", SETTINGS)
