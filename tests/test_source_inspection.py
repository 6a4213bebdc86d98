"""`inspect` on checkpoints: what they are, what they take, and why they are not supported."""

import json
from pathlib import Path

import numpy as np
import pytest
from command import call_here, fails
from models import save_tiny, tiny_config, tiny_tensors, write_checkpoint
from safetensors.numpy import save_file

from shiftadd_tvm import quantize_plan
from shiftadd_tvm.checkpoint import open_checkpoint
from shiftadd_tvm.inspection import inspect
from shiftadd_tvm.settings import QuantizeSettings
from shiftadd_tvm.source_inspection import nearest


def test_what_a_supported_checkpoint_takes(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "tiny", dtype="BF16")
    found = inspect(source)
    assert found["supported"] is True and found["stored_as"] == "safetensors"
    assert found["bits"] == found["effective_bits"] == 16
    assert found["weights"] == sum(v.size for v in tiny_tensors(tiny_config()).values())
    for row in found["packed"]:  # type: ignore[attr-defined]
        plan = quantize_plan.plan(open_checkpoint(source), QuantizeSettings(bits=row["bits"]))
        assert row["bytes"] == plan["estimated_bytes"] < row["running_bytes"]
        assert row["effective_bits"] == plan["effective_bits"]
    work = {row["method"]: row for row in found["quantizing"]}  # type: ignore[attr-defined]
    assert list(work) == ["data-free", "fast", "normal", "best"]
    assert work["fast"]["seconds"] <= work["normal"]["seconds"] <= work["best"]["seconds"]
    assert work["data-free"]["memory_bytes"] <= work["normal"]["memory_bytes"]
    text = call_here("inspect", source, cwd=tmp_path).stdout
    for words in ("supported", "yes", "  3 bits (", "--effort normal:", "of memory to run"):
        assert words in text


def test_an_unknown_family(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "tiny")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "model_type": "glm-unheard-of"}))
    child = call_here("inspect", source, "--json", cwd=tmp_path)
    found = json.loads(child.stdout.splitlines()[-1])
    assert child.returncode == 0 and found["supported"] is False and found["nearest"] == "llama"
    assert "'glm-unheard-of' is not supported" in found["reason"] and str(source) in found["reason"]
    assert [row["bits"] for row in found["packed"]] == [2, 3, 4] and found["total_bytes"] > 0
    text = call_here("inspect", source, cwd=tmp_path).stdout
    assert "nearest" in text and "is not supported" in text
    # the verbs that would work stop before any work
    for verb in (["quantize"], ["compile"]):
        fails(call_here(*verb, source, cwd=tmp_path), 3, "'glm-unheard-of' is not supported")
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_act": "relu2"}, "hidden_act 'relu2'"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "'bitsandbytes'"),
    ],
)
def test_half_supported_models(tmp_path: Path, change: dict[str, object], words: str) -> None:
    config = tiny_config()
    source = write_checkpoint(tmp_path / "tiny", config, tiny_tensors(config))
    (source / "config.json").write_text(json.dumps(config | change))
    found = inspect(source)
    assert found["supported"] is False and found["nearest"] == "llama"
    assert words in str(found["reason"])
    fails(call_here("quantize", source, cwd=tmp_path), 3, words)


def test_a_file_that_cannot_be_opened_says_why(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny_config()))
    save_file({"w": np.zeros(4, np.float32)}, tmp_path / "model.safetensors")
    raw = (tmp_path / "model.safetensors").read_bytes().replace(b'"F32"', b'"F4" ')
    (tmp_path / "model.safetensors").write_bytes(raw)
    found = inspect(tmp_path)
    assert found["supported"] is False and "FP4" in str(found["reason"])


def test_damage_stays_an_error(tmp_path: Path) -> None:
    config = tiny_config()
    tensors = tiny_tensors(config)
    del tensors["model.norm.weight"]
    source = write_checkpoint(tmp_path / "tiny", config, tensors)
    fails(call_here("inspect", source, cwd=tmp_path), 4, "holds no tensor model.norm.weight")


def test_nearest_of_nothing_alike() -> None:
    assert nearest(["encoder.conv1.kernel", "encoder.conv2.kernel"]) is None
