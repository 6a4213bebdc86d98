"""The main job on a real model: SmolLM2-135M from its GGUF to text, held to the issue's figures.

Everything goes through the installed command line, in processes of its own, so that memory is
what a user sees. It takes a few minutes; nothing here is skipped.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shiftadd_tvm.artifact import Artifact
from shiftadd_tvm.dequantized import DequantizedModel
from shiftadd_tvm.packed import open_packed
from shiftadd_tvm.reference import ReferenceModel
from shiftadd_tvm.runtime.engine import Engine
from shiftadd_tvm.verification import RELATIVE, compare

ROOT = Path(__file__).parent.parent
MB = 1 << 20
ACTIVATIONS = "int16"  # what `compile` chooses
PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):",
    "Water boils at",
    "The most important thing about friendship is",
    "In 1969, the first humans",
    "To make bread you need",
    "Question: What is the largest planet? Answer:",
)


# runs one command and says last how much it held resident, whatever forked it
PROBE = (
    "import sys; from shiftadd_tvm import cpu; from shiftadd_tvm.cli import run_command; "
    "status = run_command(sys.argv[1:]); print(cpu.peak_memory()); sys.exit(status)"
)


def run(*command: str) -> tuple[dict[str, object], int]:
    """Run a verb; return its JSON and the process's peak of resident bytes."""
    arguments = [sys.executable, "-c", PROBE, *command, "--json"]
    child = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, check=True)
    *_, result, peak = child.stdout.splitlines()
    return json.loads(result), int(peak)


@pytest.fixture(scope="module")
def cache() -> Path:
    """The folder with the model and the text, fetched where it is not there."""
    subprocess.run([sys.executable, str(ROOT / "examples" / "fetch_data.py")], check=True)
    return Path(os.environ.get("SHIFTADD_CACHE", ROOT / ".cache"))


@pytest.fixture(scope="module")
def text(cache: Path) -> Path:
    """The evaluation text."""
    return cache / "text" / "wikipedia_test.txt"


@pytest.fixture(scope="module")
def packed(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model at 3 bits, calibrated on a little text; it stayed within its memory."""
    source = cache / "smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    output = tmp_path_factory.mktemp("real") / "packed"
    text = cache / "text" / "wikipedia_calibration.txt"
    calibration = ("--calib", str(text), "--calib-tokens", "8192", "--effort", "fast", "--uniform")
    report, peak = run("quantize", str(source), "--bits", "3", *calibration, "-o", str(output))
    largest = 49152 * 576 * 4  # the embedding, in float32
    assert peak <= largest + 2048 * MB
    assert 3 < float(str(report["effective_bits"])) < 3.1
    return output


@pytest.fixture(scope="module")
def artifact(packed: Path) -> Path:
    """The packed model compiled for this machine; the gate has passed."""
    output = packed.with_name("artifact")
    report, _ = run("compile", str(packed), "-o", str(output))
    assert json.loads((output / "manifest.json").read_text())["verified"] is True
    assert Artifact(output).activations() == ACTIVATIONS
    assert report["kernels"]["tuned"] + report["kernels"]["scheduled"] > 0  # type: ignore[index]
    return output


@pytest.fixture(scope="module")
def unrounded(packed: Path) -> Path:
    """The same with activations as they are, whose tolerance leaves nearly every token decided."""
    output = packed.with_name("unrounded")
    run("compile", str(packed), "--activations", "float32", "-o", str(output))
    return output


def test_perplexity_of_the_artifact_is_that_of_the_packed_model(
    packed: Path, artifact: Path, text: Path
) -> None:
    """Within 0.1 % on 20 windows of 512."""
    windows = ("--text", str(text), "--max-windows", "20")
    expected = float(str(run("eval", str(packed), *windows)[0]["perplexity"]))
    found, _ = run("eval", str(artifact), *windows)
    assert found["tokens"] == 20 * 511
    assert float(str(found["perplexity"])) == pytest.approx(expected, rel=1e-3)
    assert expected < 2 * 23.2  # twice the reference's: the text reads as English


@pytest.mark.parametrize(("name", "least"), [("unrounded", 0.9), ("artifact", 0.7)])
def test_greedy_tokens_agree_by_the_margin_rule(
    packed: Path, name: str, least: float, request: pytest.FixtureRequest
) -> None:
    """64 tokens on 8 prompts: the reference, fed the artifact's own text, would have written it.

    If at every step the reference's decided choice is the artifact's token, its own greedy text
    is the same by induction. `least` is the part of the steps that must be decided.
    """
    artifact = Path(request.getfixturevalue(name))
    check_greedy_tokens(packed, artifact, least)


def check_greedy_tokens(packed: Path, artifact: Path, least: float) -> None:
    relative = RELATIVE[Artifact(artifact).activations()]
    engine = Engine(artifact)
    reference = ReferenceModel(DequantizedModel(open_packed(packed)))
    rows, starts = [], []
    for prompt in PROMPTS:
        session = engine.session()
        ids = _encode(artifact, prompt)
        rows.append(ids + _greedy(session, ids, 64))
        starts.append(len(ids))
        session.close()
    width = max(len(row) for row in rows)
    batch = np.array([row + [0] * (width - len(row)) for row in rows], np.int64)
    hidden = reference.hidden(batch)
    decided = 0
    for states, row, start in zip(hidden, rows, starts, strict=True):
        logits = reference.logits(states[start - 1 : len(row) - 1]).numpy()
        margin = np.diff(np.partition(logits, -2, axis=-1)[:, -2:])[:, 0]
        clear = margin > 2 * relative * np.abs(logits).max()
        assert (logits.argmax(axis=-1) == row[start:])[clear].all()
        decided += int(clear.sum())
    assert decided > least * 64 * len(PROMPTS), decided


def _encode(artifact: Path, prompt: str) -> list[int]:
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(artifact / "tokenizer.json"))
    return list(tokenizer.encode(prompt, add_special_tokens=False).ids)


def _greedy(session: object, ids: list[int], count: int) -> list[int]:
    """Return `count` greedy tokens; end-of-sequence tokens do not end it."""
    logits = session.prefill(ids)  # type: ignore[attr-defined]
    tokens: list[int] = []
    for _ in range(count):
        tokens.append(int(logits[0].argmax()))
        logits = session.decode(tokens[-1])  # type: ignore[attr-defined]
    return tokens


def test_decode_and_prefill_agree_over_many_pages(artifact: Path, text: Path) -> None:
    """The two ways through the library give the same logits at every position of 200."""
    engine = Engine(artifact)
    ids = _encode(artifact, text.read_text(encoding="utf-8")[:4000])[:200]
    session = engine.session()
    expected = session.logits_of(ids)
    session.close()
    found = np.concatenate([session.decode(token) for token in ids])
    assert compare(expected, found, RELATIVE[ACTIVATIONS]).passed


def test_generating_holds_the_parameters_and_little_more(artifact: Path) -> None:
    """Resident memory stays within the parameters' bytes + 150 MB."""
    prompt = ("--prompt", "The history of the printing press begins", "--max-new-tokens", "64")
    written, peak = run("run", str(artifact), *prompt)
    assert written["tokens"] == 64
    assert peak <= (artifact / "parameters.safetensors").stat().st_size + 150 * MB
