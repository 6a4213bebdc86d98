"""Whatever is wrong with an input, an output or the moment: one sentence, its exit code, no debris."""

import json
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command import COMMAND, call, call_here, fails, interrupt, result
from conftest import Tiny
from models import save_tiny, tiny_config, tiny_tensors, write_checkpoint

USAGE, UNSUPPORTED, BAD_FILE, INTERRUPTED = 2, 3, 4, 130
LINEAR = "model.layers.0.self_attn.q_proj.weight"
Change = Callable[[Path], None]


@pytest.fixture
def source(tiny: Tiny, tmp_path: Path) -> Path:
    """Return a copy of the checkpoint, to be damaged."""
    return shutil.copytree(tiny.source, tmp_path / "source")


@pytest.fixture
def artifact(tiny: Tiny, tmp_path: Path) -> Path:
    """Return a copy of the artifact, to be damaged."""
    return shutil.copytree(tiny.artifact, tmp_path / "artifact")


def edit(path: Path, **fields: object) -> None:
    """Set keys of a JSON file; None removes one."""
    merged = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({k: v for k, v in merged.items() if v is not None}))


def truncate(path: Path, part: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])


def flip(path: Path, position: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * position)] ^= 0x10
    path.write_bytes(content)


def rewrite(folder: Path, name: str, value: np.ndarray | None, dtype: str = "F32") -> None:
    """Write the checkpoint's weights anew with another tensor, or without it."""
    config = tiny_config()
    tensors = {n: t for n, t in tiny_tensors(config).items() if n != name}
    write_checkpoint(folder, config, tensors | ({} if value is None else {name: value}), dtype)


def of_shape(*shape: int, value: float = 0.5) -> np.ndarray:
    return np.full(shape, value, np.float32)


CONFIGS: dict[str, tuple[Change, int, list[str]]] = {
    "missing": (lambda f: (f / "config.json").unlink(), BAD_FILE, ["config.json does not exist"]),
    "not JSON": (lambda f: truncate(f / "config.json", 0.6), BAD_FILE, ["is not JSON"]),
    "empty": (lambda f: (f / "config.json").write_bytes(b""), BAD_FILE, ["is not JSON"]),
    "a list": (lambda f: (f / "config.json").write_text("[]"), BAD_FILE, ["expected an object"]),
    "no size": (lambda f: edit(f / "config.json", hidden_size=None), BAD_FILE, ["hidden_size"]),
    "text as size": (
        lambda f: edit(f / "config.json", hidden_size="many"),
        BAD_FILE,
        ["hidden_size", "many"],
    ),
    "unknown type": (
        lambda f: edit(f / "config.json", model_type="lama"),
        UNSUPPORTED,
        ["'lama'", "nearest is 'llama'"],
    ),
    "no type": (lambda f: edit(f / "config.json", model_type=None), BAD_FILE, ["model_type"]),
}
WEIGHTS: dict[str, tuple[Change, list[str]]] = {
    "missing": (lambda f: (f / "model.safetensors").unlink(), ["holds no weights"]),
    "empty": (lambda f: (f / "model.safetensors").write_bytes(b""), ["model.safetensors"]),
    "truncated": (lambda f: truncate(f / "model.safetensors", 0.7), ["model.safetensors"]),
    "no header": (lambda f: truncate(f / "model.safetensors", 0.001), ["model.safetensors"]),
    "not one": (
        lambda f: (f / "model.safetensors").write_bytes(b"PK" * 999),
        ["model.safetensors"],
    ),
    "no tensor": (lambda f: rewrite(f, LINEAR, None), ["no tensor", LINEAR]),
    "wrong shape": (lambda f: rewrite(f, LINEAR, of_shape(8, 8)), [LINEAR, "[8, 8]", "expected"]),
    "one axis": (lambda f: rewrite(f, LINEAR, of_shape(64)), [LINEAR, "[64]", "expected"]),
    "integers": (lambda f: rewrite_type(f, "I32"), [LINEAR, "I32"]),
    "another size": (lambda f: rewrite_type(f, "F16"), [LINEAR, "needs", "bytes"]),
    "no such type": (lambda f: rewrite_type(f, "F31"), [LINEAR, "F31"]),
    "NaN": (lambda f: rewrite(f, LINEAR, like(LINEAR, np.nan)), [LINEAR, "NaN"]),
    "Inf": (lambda f: rewrite(f, "model.norm.weight", like("model.norm.weight", np.inf)), ["Inf"]),
}


def like(name: str, value: float) -> np.ndarray:
    tensor = tiny_tensors(tiny_config())[name].copy()
    tensor.flat[3] = value
    return tensor


def rewrite_type(folder: Path, dtype: str) -> None:
    """Change a tensor's dtype in the header to one of the same size."""
    path = folder / "model.safetensors"
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header[LINEAR]["dtype"] = dtype
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])


@pytest.mark.parametrize("verb", ["quantize", "compile"])
@pytest.mark.parametrize("case", CONFIGS)
def test_config(source: Path, case: str, verb: str) -> None:
    change, code, words = CONFIGS[case]
    change(source)
    fails(call_here(verb, source, "-o", "out", cwd=source.parent), code, *words)
    assert not (source.parent / "out").exists()


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights(source: Path, case: str) -> None:
    change, words = WEIGHTS[case]
    change(source)
    fails(call_here("quantize", source, "-o", "out", cwd=source.parent), BAD_FILE, *words)
    assert not (source.parent / "out").exists()


def test_a_tokenizer_of_another_model(source: Path) -> None:
    tokenizer = source / "tokenizer.json"
    fields = json.loads(tokenizer.read_text())
    vocabulary = fields["model"]["vocab"]
    moved = max(vocabulary, key=lambda word: vocabulary[word] if word == "e" else -1)
    vocabulary[moved] = 9999
    tokenizer.write_text(json.dumps(fields))
    child = call("quantize", source, "-o", source.parent / "out")
    fails(child, BAD_FILE, "token id 9999", "tokenizer")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["quantize", "nowhere"], BAD_FILE, ["nowhere does not exist"]),
        (["quantize", "SOURCE", "--bits", "2.2", "--method", "alternating"], USAGE, ["whole"]),
        (["quantize", "SOURCE", "--bits", "5"], USAGE, ["--bits is 5", "from 1 to 4"]),
        (["quantize", "SOURCE", "--target-size", "9kB"], USAGE, ["0.0 MB", "allow more"]),
        (["quantize", "SOURCE", "--target-size", "big"], USAGE, ["--target-size is big"]),
        (["quantize", "SOURCE", "--target-latency", "4ms"], USAGE, ["--latencies", "together"]),
        (
            ["quantize", "SOURCE", "--target-latency", "4", "--latencies", "SOURCE"],
            USAGE,
            ["--target-latency is 4,", "4.5ms"],
        ),
        (
            ["quantize", "SOURCE", "--target-latency", "4ms", "--latencies", "SOURCE"],
            BAD_FILE,
            ["is no table of latencies", "bench --kernel"],
        ),
        (["quantize", "SOURCE", "--calib", "nowhere.txt"], BAD_FILE, ["nowhere.txt", "No such"]),
        (["quantize", "SOURCE", "--bits", "four"], USAGE, ["--bits is four"]),
        (["quantize", "SOURCE", "--method", "alternate"], USAGE, ["nearest is 'alternating'"]),
        (["quantize", "SOURCE", "--scales", "none"], USAGE, ["scale format", "separable"]),
        (["quantize", "SOURCE", "--embedding-bits", "4"], USAGE, ["embedding bits", "8 or 16"]),
        (["quantize", "SOURCE", "--seed", "-1"], USAGE, ["seed"]),
        (["quantize", "SOURCE", "--max-memory", "0.1"], USAGE, ["--max-memory is 0.1 GB", "needs"]),
        (["quantize", "PACKED"], UNSUPPORTED, ["quantized already"]),
        (["quantize"], USAGE, ["SRC"]),
        (["quantize", "SOURCE", "--what"], USAGE, ["No such option"]),
        (["compile", "PACKED", "--target", "x86-avx3"], UNSUPPORTED, ["nearest is 'x86-avx"]),
        (["compile", "PACKED", "--sequences", "3"], USAGE, ["--sequences is 3", "1, 2, 4, 8, 16 or 32"]),
        (["compile", "PACKED", "--context", "9999"], USAGE, ["--context is 9999", "320"]),
        (["compile", "SOURCE", "--context", "0"], USAGE, ["--context is 0"]),
        (["compile", "PACKED", "--bits", "3"], USAGE, ["is a packed model", "leave out"]),
        (["compile", "SOURCE", "--bits", "0.5"], USAGE, ["--bits is 0.5"]),
        (["compile", "nowhere"], BAD_FILE, ["nowhere does not exist"]),
        (["run", "ARTIFACT"], USAGE, ["--prompt"]),
        (["run", "PACKED", "--prompt", "a"], BAD_FILE, ["holds no manifest.json"]),
        (["run", "nowhere", "--prompt", "a"], BAD_FILE, ["nowhere", "manifest.json"]),
        (["run", "ARTIFACT", "--prompt", ""], USAGE, ["prompt is empty"]),
        (["run", "ARTIFACT", "--prompt", "a" * 400], USAGE, ["400 tokens", "context is 320"]),
        (["run", "ARTIFACT", "--prompt", "a", "--temperature", "-1"], USAGE, ["--temperature"]),
        (["run", "ARTIFACT", "--prompt", "a", "--top-p", "0"], USAGE, ["--top-p is 0"]),
        (["run", "ARTIFACT", "--prompt", "a", "--max-new-tokens", "0"], USAGE, ["expected 1"]),
        (["run", "ARTIFACT", "--prompt", "a", "--threads", "0"], USAGE, ["--threads"]),
        (["eval", "ARTIFACT", "--text", "nowhere"], BAD_FILE, ["nowhere cannot be read"]),
        (["eval", "ARTIFACT", "--text", "TEXT"], USAGE, ["The text has 5 tokens"]),
        (["eval", "ARTIFACT", "--text", "BINARY"], BAD_FILE, ["is not UTF-8"]),
        (["eval", "PACKED", "--text", "TEXT", "--window", "1"], USAGE, ["window of 1"]),
        (["eval", "nowhere", "--text", "TEXT"], BAD_FILE, ["nowhere does not exist"]),
        (
            ["eval", "PACKED", "--text", "LONG", "--window", "16", "--original", "PACKED"],
            USAGE,
            ["--original is for artifacts"],
        ),
        (
            ["eval", "ARTIFACT", "--text", "LONG", "--window", "16", "--original", "nowhere"],
            BAD_FILE,
            ["nowhere does not exist"],
        ),
        (["eval", "ARTIFACT", "--text", "LONG", "--window", "400"], USAGE, ["context is 320"]),
        (["verify", "PACKED"], BAD_FILE, ["holds no manifest.json"]),
        (["verify", "ARTIFACT", "--golden", "TEXT"], BAD_FILE, ["text"]),
        (["inspect", "EMPTY"], BAD_FILE, ["neither an artifact"]),
        (["inspect", "TEXT"], USAGE, ["is not a checkpoint"]),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else None,
)
def test_arguments(
    tiny: Tiny, tmp_path: Path, arguments: list[str], code: int, words: list[str]
) -> None:
    (tmp_path / "text").write_text("hello")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "long").write_text("hello " * 200)
    (tmp_path / "empty").mkdir()
    places = {"SOURCE": tiny.source, "PACKED": tiny.packed, "ARTIFACT": tiny.artifact}
    places |= {name.upper(): tmp_path / name for name in ("text", "binary", "long", "empty")}
    output = ["-o", "out"] if arguments[0] in ("quantize", "compile") else []
    found = [places.get(argument, argument) for argument in arguments]
    fails(call_here(*found, *output, cwd=tmp_path), code, *words)
    assert not list(tmp_path.glob("out*"))


def test_unknown_command() -> None:
    fails(call("compil"), USAGE, "No such command 'compil'")


@pytest.mark.parametrize("verb", ["quantize", "compile"])
def test_output_that_exists(tiny: Tiny, tmp_path: Path, verb: str) -> None:
    source = tiny.source if verb == "quantize" else tiny.packed
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("mine")
    fails(call(verb, source, "-o", tmp_path / "out"), USAGE, "already exists", "--force")
    fails(call(verb, source, "-o", tmp_path / "out", "--force"), USAGE, "not replaced")
    assert (tmp_path / "out" / "precious").read_text() == "mine"


@pytest.mark.parametrize("verb", ["quantize", "compile"])
def test_output_that_cannot_be_written(tiny: Tiny, tmp_path: Path, verb: str) -> None:
    source = tiny.source if verb == "quantize" else tiny.packed
    (tmp_path / "file").touch()
    child = call(verb, source, "-o", tmp_path / "file" / "out")
    fails(child, USAGE, "cannot be written", "Not a directory")


def test_disk_full_while_quantizing(tiny: Tiny, tmp_path: Path) -> None:
    """Every file ends at 20 kB: the same error, at the same calls, as a full disk."""
    child = call("quantize", tiny.source, "-o", tmp_path / "out", file_limit=20_000)
    fails(child, USAGE, "out cannot be written", "File too large")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("limit", [20_000, 150_000])  # in model.so, and in the parameters
def test_disk_full_while_compiling(tiny: Tiny, tmp_path: Path, limit: int) -> None:
    child = call("compile", tiny.packed, "-o", tmp_path / "out", file_limit=limit)
    fails(child, USAGE, "cannot be")
    assert not list(tmp_path.iterdir())


def test_disk_full_while_marking_as_verified(artifact: Path) -> None:
    edit(artifact / "manifest.json", verified=False)
    child = call("verify", artifact, file_limit=1000)
    fails(child, USAGE, "manifest.json cannot be written")
    assert not list(artifact.glob("*.tmp"))


DAMAGES: dict[str, tuple[Change, int, list[str]]] = {
    "library flipped": (lambda f: flip(f / "model.so"), BAD_FILE, ["model.so has sha256"]),
    "library gone": (lambda f: (f / "model.so").unlink(), BAD_FILE, ["model.so is missing"]),
    "parameters truncated": (
        lambda f: truncate(f / "parameters.safetensors", 0.9),
        BAD_FILE,
        ["parameters.safetensors has", "bytes, expected"],
    ),
    "tokenizer flipped": (lambda f: flip(f / "tokenizer.json"), BAD_FILE, ["tokenizer.json has"]),
    "manifest cut": (lambda f: truncate(f / "manifest.json", 0.5), BAD_FILE, ["manifest.json"]),
    "manifest empty": (lambda f: (f / "manifest.json").write_text("{}"), BAD_FILE, ["schema"]),
    "newer schema": (
        lambda f: edit(f / "manifest.json", schema=99),
        UNSUPPORTED,
        ["artifact schema 99", "compile it again"],
    ),
    "another ABI": (lambda f: edit(f / "manifest.json", abi=99), BAD_FILE, ["ABI 99"]),
    "no model": (lambda f: edit(f / "manifest.json", model=None), BAD_FILE, ["model"]),
    "another machine": (
        lambda f: edit(
            f / "manifest.json", target={"machine": "riscv64", "preset": "p", "features": []}
        ),
        UNSUPPORTED,
        ["compiled for riscv64"],
    ),
    "other features": (
        lambda f: edit(
            f / "manifest.json",
            target={
                **json.loads((f / "manifest.json").read_text())["target"],
                "features": ["amx9"],
            },
        ),
        UNSUPPORTED,
        ["amx9", "shiftadd-tvm targets"],
    ),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damaged_artifact(artifact: Path, case: str) -> None:
    change, code, words = DAMAGES[case]
    change(artifact)
    fails(call_here("run", artifact, "--prompt", "a", cwd=artifact), code, *words)
    child = call_here("verify", artifact, "--json", cwd=artifact)
    fails(child, code, *words)
    report = json.loads(child.stdout)
    assert report["files_ok"] is (case in ("another machine", "other features", "no model"))
    assert report["max_logit_error"] is report["tokens_equal"] is None


def test_parameters_flipped(artifact: Path) -> None:
    """Parameters are not hashed at every start: `verify` finds it."""
    flip(artifact / "parameters.safetensors", 0.9)
    fails(call("verify", artifact), BAD_FILE, "parameters.safetensors has sha256")


def test_an_artifact_without_what_text_needs(artifact: Path) -> None:
    files = json.loads((artifact / "manifest.json").read_text())["files"]
    del files["chat_template.jinja"]
    edit(artifact / "manifest.json", files=files)
    fails(call("chat", artifact, stdin="hi"), UNSUPPORTED, "no chat template", "shiftadd-tvm run")
    del files["tokenizer.json"]
    edit(artifact / "manifest.json", files=files)
    fails(call("run", artifact, "--prompt", "a"), BAD_FILE, "has no tokenizer.json")


def test_damaged_packed_model(tiny: Tiny, tmp_path: Path) -> None:
    packed = shutil.copytree(tiny.packed, tmp_path / "packed")
    truncate(packed / "model-00001-of-00003.safetensors", 0.5)
    for arguments in (["compile", packed], ["inspect", packed]):
        fails(call(*arguments), BAD_FILE, "model-00001-of-00003.safetensors")


# -- interruptions


def test_ctrl_c_in_quantize_is_resumed(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source", hidden_size=256, intermediate_size=768)
    whole, output = tmp_path / "whole", tmp_path / "out"
    data_free = ("--bits", 3, "--method", "alternating")
    expected = result("quantize", source, *data_free, "-o", whole)
    first = tmp_path / "out.partial" / "model-00001-of-00003.safetensors"
    arguments = ["quantize", source, *data_free, "-o", output]
    code, said = interrupt(arguments, first)
    assert code == INTERRUPTED and "Traceback" not in said
    assert said.splitlines()[-1].startswith("interrupted: finished layers are kept in ")
    assert not output.exists()
    written = first.stat().st_mtime_ns
    assert result(*arguments)["layers"] == expected["layers"]
    assert (output / first.name).stat().st_mtime_ns == written
    assert sorted(p.name for p in output.iterdir()) == sorted(p.name for p in whole.iterdir())
    for path in whole.iterdir():
        assert (output / path.name).read_bytes() == path.read_bytes()
    assert not first.parent.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["building the graph", "compiling kernels"])
def test_ctrl_c_in_compile(tiny: Tiny, tmp_path: Path, moment: str, number: int) -> None:
    arguments = ["compile", tiny.packed, "-o", tmp_path / "out", "--force"]
    for _ in range(3):  # on a busy machine the artifact may be there before the signal is
        code, output = interrupt(arguments, moment, number)
        if code:
            break
    assert code == INTERRUPTED and "Traceback" not in output, output
    assert output.splitlines()[-1] == "interrupted: no artifact was written."
    shutil.rmtree(tmp_path / "out", ignore_errors=True)  # of a turn that the signal missed
    assert not list(tmp_path.iterdir())


def test_ctrl_c_in_eval(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello " * 500_000)
    for path in (tiny.artifact, tiny.packed):
        arguments = ["eval", path, "--text", tmp_path / "text", "--window", 64]
        code, output = interrupt(arguments, "scoring: 0%")
        assert (code, output.splitlines()[-1]) == (
            INTERRUPTED,
            "interrupted: nothing was measured.",
        )


@pytest.mark.parametrize("verb", ["run", "verify"])
def test_ctrl_c_in_a_short_verb(tiny: Tiny, verb: str) -> None:
    before = {path.name: path.read_bytes() for path in tiny.artifact.iterdir()}
    more = ["--prompt", "c", "--max-new-tokens", 250] if verb == "run" else []
    for _ in range(10):  # it may be over before the signal comes
        code, output = interrupt([verb, tiny.artifact, "--verbose", *more], f"{verb}: ", delay=0.01)
        if code != 0:
            break
    assert code == INTERRUPTED and output.splitlines()[-1].startswith("interrupted: ")
    assert before == {path.name: path.read_bytes() for path in tiny.artifact.iterdir()}


def test_ctrl_c_and_sigterm_in_chat(tiny: Tiny) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        code, output = interrupt(["chat", tiny.artifact, "--verbose"], "chat: ", number)
        last = output.splitlines()[-1]
        assert (code, last) == (INTERRUPTED, "interrupted: the conversation ends here.")


def test_ctrl_c_in_doctor() -> None:
    code, output = interrupt(["doctor", "--verbose"], "doctor: ")
    assert (code, output.splitlines()[-1]) == (INTERRUPTED, "interrupted: nothing was checked.")


def test_a_reader_that_goes_away(tiny: Tiny) -> None:
    command = [*COMMAND, "run", str(tiny.artifact), "--prompt", "a", "--max-new-tokens", "250"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    child.stdout.close()
    _, errors = child.communicate(timeout=60)
    assert child.returncode == INTERRUPTED and "Traceback" not in errors
