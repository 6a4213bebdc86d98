"""Every verb on the tiny model: what it prints, what it leaves, what it imports."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command import call, call_here, fails, result
from conftest import Tiny

from shiftadd_tvm import encoder_families, evaluation, families
from shiftadd_tvm.checkpoint import open_checkpoint
from shiftadd_tvm.dequantized import DequantizedModel
from shiftadd_tvm.packed import open_packed
from shiftadd_tvm.reference import ReferenceModel
from shiftadd_tvm.runtime.text import Tokenizer

VERBS = ["quantize", "compile", "tune", "run", "chat", "eval", "bench"]
VERBS += ["verify", "inspect", "report", "config", "doctor", "targets", "families"]
TEXT = "A packed model is planes and powers of two; an artifact is what ships. " * 20


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path / "text.txt"


def test_help_loads_no_heavy_library() -> None:
    code = (
        "import sys; from shiftadd_tvm.cli import run_command; run_command(['--help']); "
        "heavy = {'numpy', 'torch', 'tvm', 'tvm_ffi', 'transformers', 'rich', 'scipy'}; "
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_exactly_the_built_verbs_exist(tmp_path: Path) -> None:
    listed = call("--help").stdout.partition("Commands:")[2]
    assert re.findall(r"^  (\w+) ", listed, re.MULTILINE) == VERBS
    fails(call_here("serve", cwd=tmp_path), 2, "No such command")


def test_flags_of_later_versions_do_not_exist(tmp_path: Path) -> None:
    fails(call_here("tune", "x", "--draft", "1", cwd=tmp_path), 2, "No such option", "--draft")


def test_version() -> None:
    assert call("--version").stdout == "shiftadd-tvm 0.1.0\n"


def test_quantize(tiny: Tiny) -> None:
    report = tiny.report("quantize")
    fields = {"effective_bits", "nominal_bits", "linear_bytes", "layers", "seconds"}
    assert report.keys() >= fields | {"peak_memory_bytes"}
    assert report["nominal_bits"] == 3 and report["effective_bits"] == pytest.approx(3.37, abs=0.02)
    assert len(report["layers"]) == 14
    for layer in report["layers"]:
        assert layer.keys() == {"name", "bits", "weight_error", "output_error"}
        assert layer["bits"] == 3 and 0 < layer["weight_error"] < 0.2
        assert 0 < layer["output_error"] < 0.2
    assert "tvm" not in tiny.imported("quantize")


def test_compile(tiny: Tiny) -> None:
    report = tiny.report("compile")
    fields = {"target", "kernels", "library_bytes", "parameter_bytes", "verify"}
    assert report.keys() >= fields
    assert report["kernels"].keys() == {"tuned", "scheduled", "fallback"}
    assert report["verify"]["tokens_equal"] is True
    assert report["verify"]["max_logit_error"] <= report["verify"]["tolerance"]
    assert report["library_bytes"] == (tiny.artifact / "model.so").stat().st_size
    assert not {"torch", "transformers"} & tiny.imported("compile")
    functions = json.loads((tiny.artifact / "manifest.json").read_text())["functions"]
    (tokens,) = functions["decode_b2"]["inputs"][:1]
    assert tokens == {"name": "ids", "dtype": "int32", "shape": [2]}
    assert functions["embed"]["inputs"][0]["shape"] == ["n"]


def test_compile_as_typed_in_a_folder_of_hugging_face(tiny: Tiny, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny.source, tmp_path / "checkpoint")
    child = call("compile", "model.safetensors", "--effort", "fast", cwd=folder)
    assert child.returncode == 0, child.stderr
    made = [path for path in folder.iterdir() if path.is_dir()]
    packed = folder / "model-shiftadd-4bit"
    (artifact,) = set(made) - {packed}
    assert artifact.name.startswith("model-shiftadd-4bit-") and len(made) == 2
    assert str(packed.name) in child.stderr and artifact.name in child.stderr  # the plan
    assert re.search(r"\d+ scheduled", child.stdout)
    assert f"next: shiftadd-tvm run {artifact.name}" in child.stdout
    assert result("verify", artifact)["files_ok"] is True
    # the packed model is recognized, and only with the same bits and source
    from shiftadd_tvm import workflow
    from shiftadd_tvm.errors import OutputError

    assert workflow.plan_compile(folder / "model.safetensors", effort="fast", force=True).reused
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rope_theta": 77.0}))
    with pytest.raises(OutputError, match="is not .* quantized with these settings"):
        workflow.plan_compile(folder / "model.safetensors", effort="fast", force=True)


def test_run(tiny: Tiny) -> None:
    options = ("--prompt", "hello", "--max-new-tokens", 24)
    report = result("run", tiny.artifact, *options)
    assert report.keys() >= {
        "text",
        "tokens",
        "prefill_tokens_per_second",
        "decode_tokens_per_second",
    }
    assert report["tokens"] == len(report["token_ids"]) == 24
    plain = call("run", tiny.artifact, *options)
    assert plain.stdout == report["text"] + "\n" and "tokens/s" in plain.stderr
    assert result("run", tiny.artifact, *options, "--threads", 1)["text"] == report["text"]


def test_run_by_seed(tiny: Tiny) -> None:
    options = ("--prompt", "hello", "--max-new-tokens", 24, "--temperature", 1, "--top-p", 0.95)
    one, again, other = (
        result("run", tiny.artifact, *options, "--top-k", 50, "--seed", seed)["text"]
        for seed in (1, 1, 2)
    )
    assert one == again != other


def test_run_stops(tiny: Tiny) -> None:
    options = ("--prompt", "hello", "--max-new-tokens", 24)
    whole = result("run", tiny.artifact, *options)["text"]
    stop = whole[8:11]
    report = result("run", tiny.artifact, *options, "--stop", "never this", "--stop", stop)
    assert report["text"] == whole[: whole.index(stop)]
    assert report["finish_reason"] == "stop" and report["tokens"] < 24


def test_chat(tiny: Tiny) -> None:
    lines = "hello\nand more\n/help\n/new\nhello\n/exit\nnever read\n"
    child = call("chat", tiny.artifact, "--max-new-tokens", 6, "--temperature", 0, stdin=lines)
    assert child.returncode == 0, child.stderr
    assert "/help is no command" in child.stderr and "a new conversation" in child.stderr
    alone = call("chat", tiny.artifact, "--max-new-tokens", 6, "--temperature", 0, stdin="hello")
    assert child.stdout.startswith(alone.stdout) and child.stdout.endswith(alone.stdout)
    assert len(child.stdout) > 2 * len(alone.stdout)


def test_eval(tiny: Tiny, text: Path) -> None:
    found = {}
    for path in (tiny.source, tiny.packed, tiny.artifact):
        report = result("eval", path, "--text", text, "--window", 32, "--max-windows", 9)
        assert report.keys() >= {"perplexity", "tokens", "effective_bits", "seconds"}
        assert report["tokens"] == 9 * 31
        found[path.name] = report
    packed, artifact = found["packed"], found["artifact"]
    assert artifact["perplexity"] == pytest.approx(packed["perplexity"], rel=1e-3)
    assert artifact["effective_bits"] == packed["effective_bits"]
    assert found["source"]["effective_bits"] == 32


def test_eval_against_the_original(tiny: Tiny, text: Path) -> None:
    """The divergence is that of the two models' logits, and nothing from what it was compiled of."""
    options = ("--text", text, "--window", 32, "--max-windows", 3)
    same = result("eval", tiny.artifact, *options, "--original", tiny.packed)
    assert same["kl"] < 1e-4 and same["top1"] > 0.98
    found = result("eval", tiny.artifact, *options, "--original", tiny.source)
    tokenizer = Tokenizer(open_checkpoint(tiny.source).tokenizer_files().get, tiny.source)
    ids = np.array(tokenizer.encode(text.read_text(), bos=False))
    logs = []
    for source in (open_checkpoint(tiny.source), DequantizedModel(open_packed(tiny.packed))):
        model = ReferenceModel(source)
        states = model.hidden(evaluation.windows(ids, 32, tokenizer.bos, 3))[:, :-1]
        logs.append(torch.log_softmax(model.logits(states.flatten(0, 1)).double(), 1))
    kl = float((logs[0].exp() * (logs[0] - logs[1])).sum(1).mean())
    assert found["kl"] == pytest.approx(kl, rel=0.02) and kl > 1e-3
    assert found["top1"] == pytest.approx(
        float((logs[0].argmax(1) == logs[1].argmax(1)).double().mean()), abs=0.02
    )
    plain = result("eval", tiny.artifact, *options)
    assert found["perplexity"] == plain["perplexity"] and "kl" not in plain


def test_verify_marks_what_passes(tiny: Tiny, tmp_path: Path) -> None:
    artifact = shutil.copytree(tiny.artifact, tmp_path / "artifact")
    manifest = json.loads((artifact / "manifest.json").read_text())
    before = (artifact / "manifest.json").read_bytes()
    assert manifest["verified"] is True
    (artifact / "manifest.json").write_text(json.dumps({**manifest, "verified": False}))
    assert result("inspect", artifact)["verified"] is False
    report = result("verify", artifact)
    assert report.keys() >= {"max_logit_error", "tokens_equal", "files_ok"}
    assert report["files_ok"] is report["tokens_equal"] is True
    assert (artifact / "manifest.json").read_bytes() == before
    golden = result("verify", artifact, "--golden", tiny.packed / "golden.safetensors")
    assert golden["max_logit_error"] == report["max_logit_error"]


def test_verify_finds_wrong_numbers(tiny: Tiny, tmp_path: Path) -> None:
    artifact = shutil.copytree(tiny.artifact, tmp_path / "artifact")
    other = _other_golden(tiny.packed / "golden.safetensors", tmp_path / "golden.safetensors")
    child = call("verify", artifact, "--golden", other, "--json")
    fails(child, 5, "does not reproduce its packed model", "compile it again")
    report = json.loads(child.stdout)
    assert report["files_ok"] is True and report["max_logit_error"] > report["tolerance"]


def _other_golden(path: Path, other: Path) -> Path:
    from shiftadd_tvm.artifact import read_golden
    from shiftadd_tvm.tensorfile import write_tensors

    ids, logits = read_golden(path)
    write_tensors(other, [("ids", "I32", ids), ("logits", "F32", logits[..., ::-1].copy())], {})
    return other


def test_inspect(tiny: Tiny) -> None:
    for path, kind in ((tiny.source, "checkpoint"), (tiny.packed, "packed")):
        report = result("inspect", path)
        assert report.keys() >= {"kind", "version", "effective_bits"} and report["kind"] == kind
    report = result("inspect", tiny.artifact)
    assert report["kind"] == "artifact" and report["version"] == 1
    assert report["bits"] == 3 and report["parameter_bytes"] > report["linear_bytes"]
    assert {"decode_b1", "prefill", "sample"} <= set(report["functions"])
    assert "effective bits" in call("inspect", tiny.artifact).stdout


def test_doctor() -> None:
    report = result("doctor")
    for check in report["checks"]:
        assert check.keys() >= {"name", "ok", "detail", "remedy"}
        assert check["ok"] or check["optional"], check
    assert {"python", "apache-tvm", "torch", "c++ compiler"} <= {
        c["name"] for c in report["checks"]
    }


def test_doctor_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    from shiftadd_tvm import diagnosis, presentation

    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(diagnosis, "FFI_VERSION", "9.9")
    monkeypatch.setattr(diagnosis, "_child", lambda code: "ImportError: libfoo.so")
    checks = {check.name: check for check in diagnosis.examine()}
    assert not checks["c++ compiler"].ok and "apt-get install g++" in checks["c++ compiler"].remedy
    assert "expected 9.9" in checks["apache-tvm-ffi"].detail
    assert "libfoo.so" in checks["torch"].detail
    assert "pip install 'torch'" in presentation.checks(list(checks.values()))


def test_targets() -> None:
    presets = result("targets")["presets"]
    assert {"x86-avx512", "x86-avx2", "x86-64", "arm"} <= {preset["name"] for preset in presets}
    assert sum(preset["default"] for preset in presets) <= 1


def test_families() -> None:
    found = result("families")["families"]
    names = [*families.names(), *encoder_families.names()]
    assert [family["name"] for family in found] == names
    assert all(family["models"] for family in found)


def test_dry_run_writes_nothing(tiny: Tiny, tmp_path: Path) -> None:
    report = result("quantize", tiny.source, "--dry-run", "-o", tmp_path / "out", "--bits", 2)
    assert report["nominal_bits"] == 2 and report["estimated_bytes"] > report["linear_bytes"]
    assert not list(tmp_path.iterdir())
    plan = call("quantize", tiny.source, "--dry-run").stderr
    assert str(tiny.root / "source-shiftadd-4bit") in plan
    assert "text that the model writes itself" in plan
    sized = result("quantize", tiny.source, "--dry-run", "--target-size", "0.17MB")
    assert 1 < sized["nominal_bits"] < 4 and sized["nominal_bits"] != int(sized["nominal_bits"])
    again = result("quantize", tiny.source, "--dry-run", "--bits", 4)["estimated_bytes"]
    assert again > 170_000 > report["estimated_bytes"]


def test_the_default_output_is_beside_the_source(tmp_path: Path) -> None:
    from shiftadd_tvm.workflow import compiled_output, quantized_output

    (tmp_path / "model.safetensors").touch()
    for source, expected in (
        (tmp_path / "model.safetensors", tmp_path / "model-shiftadd-3bit"),
        (tmp_path, tmp_path.parent / f"{tmp_path.name}-shiftadd-3bit"),
        (f"{tmp_path}/", tmp_path.parent / f"{tmp_path.name}-shiftadd-3bit"),
        (".", Path.cwd().parent / f"{Path.cwd().name}-shiftadd-3bit"),
        ("org/name", Path("name-shiftadd-3bit")),
    ):
        assert quantized_output(source, 3) == expected
    assert compiled_output(tmp_path / "packed", "x86-avx2") == tmp_path / "packed-x86-avx2"


def test_progress_is_plain_lines_where_there_is_no_terminal(tiny: Tiny, text: Path) -> None:
    child = call("eval", tiny.artifact, "--text", text, "--window", 32)
    assert re.search(r"^scoring: 100% window (\d+) of \1$", child.stderr, re.MULTILINE)
    assert "\x1b" not in child.stderr + child.stdout
    quiet = call("eval", tiny.artifact, "--text", text, "--window", 32, "--quiet")
    assert quiet.stderr == "" and quiet.stdout.startswith("perplexity ")


def test_the_package_imports_its_verbs_lazily() -> None:
    code = (
        "import sys, shiftadd_tvm; assert 'shiftadd_tvm.workflow' not in sys.modules; "
        "from shiftadd_tvm import compile, load, quantize, tune; assert 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_public_verbs(tiny: Tiny, tmp_path: Path) -> None:
    import shiftadd_tvm
    from shiftadd_tvm.errors import UsageError

    settings = {"bits": 3, "effort": "fast", "calibration_tokens": 256, "mixed": False}
    report = shiftadd_tvm.quantize(tiny.source, tmp_path / "packed", **settings)
    assert report.to_dict()["layers"] == tiny.report("quantize")["layers"]
    for path in tiny.packed.iterdir():
        assert path.read_bytes() == (tmp_path / "packed" / path.name).read_bytes(), path.name
    with pytest.raises(UsageError, match="--load is disk, expected map or hugepages"):
        shiftadd_tvm.compile(tiny.packed, tmp_path / "app", load="disk")
    with pytest.raises(UsageError, match="--cache is int4, expected float32 or int8"):
        shiftadd_tvm.compile(tiny.packed, tmp_path / "app", cache="int4")
    with pytest.raises(UsageError, match="--cache int8 is for processors only"):
        shiftadd_tvm.compile(tiny.packed, tmp_path / "app", cache="int8", target="cuda-sm90")
    with pytest.raises(UsageError, match="--activations is int4, expected one of int16"):
        shiftadd_tvm.compile(tiny.packed, tmp_path / "app", activations="int4")
    with pytest.raises(AttributeError, match="serve"):
        shiftadd_tvm.__getattr__("serve")
