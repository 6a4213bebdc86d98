"""The harness scores what it is given, by the same protocol as `eval`, and goes on where it stopped."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Tiny
from models import save_tiny, tiny_config, tiny_tensors, write_checkpoint

from shiftadd_tvm import evaluation, reference
from shiftadd_tvm.accuracy.harness import Harness
from shiftadd_tvm.accuracy.method import Dequantized, Method
from shiftadd_tvm.accuracy.moments import Moments
from shiftadd_tvm.accuracy.rows import Row, RowStore
from shiftadd_tvm.checkpoint import open_checkpoint
from shiftadd_tvm.errors import BadFileError
from shiftadd_tvm.families import read_config
from shiftadd_tvm.reference import ReferenceModel

ROOT = Path(__file__).resolve().parent.parent
IDS = np.random.default_rng(3).integers(0, 259, 200)
CALIBRATION = np.random.default_rng(4).integers(0, 259, (5, 24))


class Counted:
    """A method that scales weights and counts how often it is asked."""

    def __init__(self, factor: float, stop_after: int | None = None) -> None:
        self.calls, self.factor, self.stop_after = 0, factor, stop_after

    def __call__(self, weights: torch.Tensor, hessian: torch.Tensor, bits: int) -> Dequantized:
        if self.calls == self.stop_after:
            raise KeyboardInterrupt
        self.calls += 1
        return Dequantized(weights * self.factor, bits + 1 / len(weights))

    def method(self) -> Method:
        return Method("scaled", self, (3,), True, "for a test")


def make(source: Path, folder: Path, windows: int = 4) -> Harness:
    cut = evaluation.windows(IDS, 32, None, windows)
    return Harness(open_checkpoint(source), folder, CALIBRATION, cut, lambda what: None)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("accuracy") / "tiny")


def test_rows_are_perplexities_of_the_replaced_weights(source: Path, tmp_path: Path) -> None:
    harness = make(source, tmp_path)
    plainly = reference.perplexity(open_checkpoint(source), IDS, 32, None, 4).perplexity
    assert harness.reference().perplexity == plainly
    same = harness.row(Counted(1.0).method(), 3)
    assert (same.perplexity, same.gap, same.output_error) == (plainly, 0.0, 0.0)

    tensors = tiny_tensors(tiny_config())
    halved = {n: v / 2 if "_proj" in n else v for n, v in tensors.items()}
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "halved", tiny_config(), halved))
    expected = reference.perplexity(checkpoint, IDS, 32, None, 4).perplexity
    row = make(source, tmp_path / "other").row(Counted(0.5).method(), 3)
    assert row.perplexity == pytest.approx(expected, rel=1e-6) != plainly
    assert row.gap == pytest.approx(np.log(expected / plainly))
    assert row.output_error == pytest.approx(0.25, rel=1e-4)
    shapes = [v.shape for n, v in tensors.items() if "_proj" in n]
    stored = sum(n * k * (3 + 1 / n) for n, k in shapes) / sum(n * k for n, k in shapes)
    assert row.effective_bits == pytest.approx(stored)


def test_an_interrupted_row_goes_on(source: Path, tmp_path: Path) -> None:
    linears = sum("_proj" in name for name in tiny_tensors(tiny_config()))
    uninterrupted = make(source, tmp_path / "a").row(Counted(0.5).method(), 3)
    with pytest.raises(KeyboardInterrupt):
        make(source, tmp_path / "b").row(Counted(0.5, stop_after=5).method(), 3)
    rest = Counted(0.5)
    row = make(source, tmp_path / "b").row(rest.method(), 3)
    assert rest.calls == linears - 5
    assert (row.perplexity, row.effective_bits) == (
        uninterrupted.perplexity,
        uninterrupted.effective_bits,
    )
    again = Counted(0.5)
    assert make(source, tmp_path / "b").row(again.method(), 3) == row and again.calls == 0
    make(source, tmp_path / "b", windows=3).row(again.method(), 3)
    assert again.calls == linears  # other windows, another row
    assert not list(tmp_path.glob("b/*/scaled-3bit"))  # the dense weights are gone


def test_weights_that_other_code_left_are_not_used(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        make(source, tmp_path).row(Counted(0.5, stop_after=5).method(), 3)
    monkeypatch.setattr("shiftadd_tvm.accuracy.harness.code_digest", lambda: "changed")
    changed = Counted(1.0)
    row = make(source, tmp_path).row(changed.method(), 3)
    assert row.gap == 0 and changed.calls == sum("_proj" in n for n in tiny_tensors(tiny_config()))


def test_moments_are_the_means_of_the_inputs_products(source: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(source)
    decoder = read_config(checkpoint.config)
    moments = Moments(decoder, tmp_path / "moments")
    moments.measure(checkpoint, CALIBRATION, lambda what: None)
    model = ReferenceModel(checkpoint, keep=True)
    for group in decoder.input_groups():
        seen: list[torch.Tensor] = []
        linear = model.model.get_submodule(group[-1])
        hook = linear.register_forward_pre_hook(lambda module, x, seen=seen: seen.append(x[0]))
        model.hidden(CALIBRATION)
        hook.remove()
        x = torch.cat(seen).flatten(0, 1)
        torch.testing.assert_close(moments.of(group), x.T @ x / CALIBRATION.size)


def test_a_row_is_made_once_by_the_same_maker(tmp_path: Path) -> None:
    first = Row("a", 2, 2.5, float("inf"), float("inf"), None, False, "")
    second = Row("a", 2, 2.5, 30.0, 0.5, 1.0, False, "")
    store = RowStore(tmp_path)
    assert store.get("a", "x", lambda: first) == first
    assert store.get("a", "x", lambda: second) == first
    assert store.get("a", "y", lambda: second) == second
    assert first.to_dict()["gap"] is None and second.to_dict()["gap"] == 0.5


def test_tokens_of_another_tokenizer_are_refused(source: Path, tmp_path: Path) -> None:
    strange = np.where(CALIBRATION == CALIBRATION.max(), 1158, CALIBRATION)
    with pytest.raises(BadFileError, match="token id 1158, expected ids below"):
        Harness(open_checkpoint(source), tmp_path, CALIBRATION, strange, print)


def test_the_command(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 20)
    texts = ("--text", "text.txt", "--calib", "text.txt", "--calib-tokens", "256", "--window", "64")
    chosen = ("--methods", "rtn-g64,msfp", "--bits", "3,4", "--windows", "2", "--our-bits", "none")
    command = [sys.executable, str(ROOT / "examples" / "accuracy.py"), "--model", str(tiny.source)]
    command += ["--ours", str(tiny.artifact), "--ours", str(tiny.packed), *texts, *chosen]
    options = {"cwd": tmp_path, "capture_output": True, "text": True, "check": True}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, **options)  # type: ignore[call-overload]
    results = json.loads((tmp_path / "build/accuracy/accuracy.json").read_text())
    rows = {(row["method"], row["nominal_bits"]): row for row in results["rows"]}
    expected = {("reference", 16), ("shiftadd-tvm", 3)}
    assert set(rows) == expected | {(m, b) for m in ("rtn-g64", "msfp") for b in (3, 4)}
    assert len(results["rows"]) == 7  # the artifact, and the packed model as it was compiled here
    for row in rows.values():
        gap = np.log(row["perplexity"] / rows["reference", 16]["perplexity"])
        assert row["gap"] == pytest.approx(gap)
        assert f"{row['perplexity']:.2f}" in done.stdout
    again = subprocess.run(command, env=environment, **options)  # type: ignore[call-overload]
    assert "$ shiftadd-tvm eval" in done.stdout and "$" not in again.stdout  # nothing is made anew
    assert again.stdout.splitlines()[1:] == done.stdout[done.stdout.index("gap: ln") :].splitlines()
