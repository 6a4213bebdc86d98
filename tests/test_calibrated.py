"""`quantize` with calibration, whole: better than data-free, within its bits, resumable, same bytes."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from models import save_tiny, save_tokenizer, tiny_tensors, write_checkpoint

from shiftadd_tvm import (
    calibrated,
    calibration,
    families,
    hidden_states,
    latencies,
    paper_criterion,
    quantize_time,
)
from shiftadd_tvm.calibrated import Calibrated
from shiftadd_tvm.checkpoint import open_checkpoint
from shiftadd_tvm.dequantized import DequantizedModel
from shiftadd_tvm.effort import Effort
from shiftadd_tvm.errors import BadFileError, OutputError, UsageError
from shiftadd_tvm.families import mixtral
from shiftadd_tvm.packed import open_packed
from shiftadd_tvm.quantization import quantize
from shiftadd_tvm.quantize_plan import bits_within_latency, plan
from shiftadd_tvm.reference import ReferenceModel
from shiftadd_tvm.settings import QuantizeSettings
from shiftadd_tvm.statistics_store import StatisticsStore

SETTINGS = QuantizeSettings(bits=2.5, method="shiftadd", calibration_tokens=96)


@pytest.fixture(autouse=True, scope="module")
def small_amounts() -> Iterator[None]:
    amounts = Effort(tokens=96, own_tokens=96, rounds=1, steps=12, sensitivity_tokens=64)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of tiny operators: more only wait for each other
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(QuantizeSettings, "amounts", property(lambda self: amounts))
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "tiny"
    return save_tiny(folder, dtype="BF16", max_position_embeddings=32)  # 32 tokens a window


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def divergence(source: Path, packed: Path) -> float:
    """Return KL(original || packed), nats a token, on text that the calibration has not seen."""
    ids = np.random.default_rng(9).integers(0, 259, (8, 32)).astype(np.int64)
    logits = []
    for weights in (open_checkpoint(source), DequantizedModel(open_packed(packed))):
        model = ReferenceModel(weights)
        logits.append(torch.log_softmax(model.logits(model.hidden(ids).reshape(256, -1)), 1))
    return float((logits[0].exp() * (logits[0] - logits[1])).sum(1).mean())


def test_better_than_data_free_at_the_same_bits(source: Path, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, bits=2, calibration_tokens=2048)
    report = quantize(source, tmp_path / "tuned", settings)
    quantize(source, tmp_path / "plain", QuantizeSettings(bits=2))
    assert divergence(source, tmp_path / "tuned") < divergence(source, tmp_path / "plain")
    assert report.nominal_bits <= 2
    assert all(layer.output_error is not None for layer in report.layers)
    model = open_packed(tmp_path / "tuned")
    calibration = model.quantization["calibration"]
    assert calibration == {"data": "written by the model", "tokens": 2048, "seed": 0}
    assert {file.name for file in (tmp_path / "tuned").iterdir() if file.is_dir()} == set()


@pytest.mark.parametrize("scale_format", ["row-group", "column-wise", "block-wise"])
def test_scales_of_blocks_are_better_than_data_free(
    source: Path, tmp_path: Path, scale_format: str
) -> None:
    plain = QuantizeSettings(bits=2, scale_format=scale_format)
    settings = dataclasses.replace(plain, method="shiftadd", calibration_tokens=2048)
    assert settings.steps == 0 < dataclasses.replace(settings, scale_format="separable").steps
    report = quantize(source, tmp_path / "coded", settings)
    quantize(source, tmp_path / "plain", plain)
    assert divergence(source, tmp_path / "coded") < divergence(source, tmp_path / "plain")
    assert report.nominal_bits <= 2 and all(0 < one.output_error for one in report.layers)


def test_average_bits_are_kept_and_chosen(source: Path, tmp_path: Path) -> None:
    report = quantize(source, tmp_path / "out", SETTINGS)
    bits = [layer.bits for layer in report.layers]
    sizes = [int(np.prod(layer["shape"])) for layer in plan(source, SETTINGS)["layers"]]  # type: ignore[attr-defined]
    assert np.dot(bits, sizes) <= 2.5 * sum(sizes) + 1e-6
    assert np.dot(bits, sizes) > 2.3 * sum(sizes) and len(set(bits)) > 1
    assert open_packed(tmp_path / "out").quantization["bits"] == report.nominal_bits


def test_bits_within_a_time(source: Path, tmp_path: Path) -> None:
    """By tables of the bench; the time of all linears is kept, and bits differ."""
    shapes = set(map(tuple, (layer["shape"] for layer in plan(source, SETTINGS)["layers"])))  # type: ignore[attr-defined]
    files = []
    for bits in (2, 3, 4):
        kernels = [{"shape": shape, "microseconds": shape[0] * bits + 5.0} for shape in shapes]
        files.append(tmp_path / f"{bits}.json")
        files[-1].write_text(json.dumps({"bits": bits, "kernels": kernels}))
    wanted, tables = 0.0, latencies.read(files)
    for layer in plan(source, SETTINGS)["layers"]:  # type: ignore[attr-defined]
        wanted += tables[latencies.shape_name(layer["shape"])][3] * 0.9
    settings = dataclasses.replace(SETTINGS, latencies=tables, latency=wanted)
    settings = dataclasses.replace(settings, bits=bits_within_latency(open_checkpoint(source), settings))
    assert 2 < settings.bits < 3
    layers = quantize(source, tmp_path / "out", settings).layers
    model = open_packed(tmp_path / "out")
    taken = [tables[latencies.shape_name(model.weight(x.name).shape)][x.bits] for x in layers]
    assert 0.9 * wanted < sum(taken) <= wanted and len({x.bits for x in layers}) > 1
    too_short = dataclasses.replace(settings, latency=wanted / 4)
    with pytest.raises(UsageError, match="--target-latency is .* at 2 bits; allow more"):
        bits_within_latency(open_checkpoint(source), too_short)
    del tables[next(iter(tables))]
    with pytest.raises(UsageError, match="say nothing of linears"):
        bits_within_latency(open_checkpoint(source), settings)
    files[0].write_text("{}")
    with pytest.raises(BadFileError, match="is no table of latencies"):
        latencies.read(files)


def test_bits_by_the_criterion_of_the_paper(source: Path, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, criterion="paper")
    layers = quantize(source, tmp_path / "out", settings).layers
    measured = quantize(source, tmp_path / "measured", SETTINGS).layers
    sizes = [int(np.prod(layer["shape"])) for layer in plan(source, settings)["layers"]]  # type: ignore[attr-defined]
    bits = [layer.bits for layer in layers]
    assert 2.3 * sum(sizes) < np.dot(bits, sizes) <= 2.5 * sum(sizes) + 1e-6
    assert bits != [layer.bits for layer in measured]
    method = open_packed(tmp_path / "out").quantization["method"]
    assert isinstance(method, dict) and method["criterion"] == "paper"


def test_the_criterion_of_the_paper_is_as_defined() -> None:
    rng = np.random.default_rng(3)
    x, weights = rng.standard_normal((40, 12)), rng.standard_normal((7, 12))
    hessian = x.T @ x
    damped = hessian + 0.01 * hessian.diagonal().mean() * np.eye(12)
    diagonal = np.linalg.cholesky(np.linalg.inv(damped)).T.diagonal()
    importance = weights / diagonal
    expected = np.linalg.norm(importance) * importance.std(ddof=1) ** 2
    found = paper_criterion.score(*(torch.tensor(a, dtype=torch.float32) for a in (weights, hessian)))
    assert found == pytest.approx(expected, rel=1e-4)


def test_uniform_bits_when_asked(source: Path, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, bits=3, mixed=False)
    assert {layer.bits for layer in quantize(source, tmp_path / "out", settings).layers} == {3}


def test_experts_that_no_token_chose_are_coded_and_reported(tmp_path: Path) -> None:
    config = {**mixtral.tiny_config(), "num_experts_per_tok": 1, "max_position_embeddings": 32}
    tensors = tiny_tensors(config)
    routers = [name for name in tensors if name.endswith("gate.weight")]
    for name in routers:  # of s, -s and 0, one is above 0 or all are
        tensors[name][1], tensors[name][3] = -tensors[name][0], 0
    source = write_checkpoint(tmp_path / "source", config, tensors)
    save_tokenizer(source, 259)
    report = quantize(source, tmp_path / "out", SETTINGS)
    unseen = [f"{name.removesuffix('gate.weight')}experts.3" for name in routers]
    expected = [f"{path}.{linear}" for path in unseen for linear in ("w1", "w3", "w2")]
    assert report.untouched == expected
    packed = open_packed(tmp_path / "out")
    assert packed.quantization["calibration"]["untouched"] == expected  # type: ignore[index]
    errors = {layer.name: layer.weight_error for layer in report.layers}
    assert all(0 < errors[name] < 0.5 for name in expected)


class _Stopped(Exception):
    pass


STAGES = (
    "calibration: model.layers.1",
    "sensitivity: model.layers.1",
    "tuning: step 11",
)


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole") / "out"
    quantize(source, output, SETTINGS)
    return output


@pytest.mark.parametrize("stage", STAGES)
def test_interrupted_run_goes_on_to_the_same_bytes(
    source: Path, whole: Path, tmp_path: Path, stage: str
) -> None:
    def stop(done: int, total: int, what: str) -> None:
        if what.startswith(stage):
            raise _Stopped

    with pytest.raises(_Stopped):
        quantize(source, tmp_path / "out", SETTINGS, progress=stop)
    seen: list[str] = []
    quantize(source, tmp_path / "out", SETTINGS, progress=lambda d, t, what: seen.append(what))
    assert contents(tmp_path / "out") == contents(whole)
    assert "calibration text" not in seen


def test_states_on_disk_change_no_byte(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "SLAB_TOKENS", 64)  # two windows
    written = []
    write = hidden_states.OnDisk.keep
    note = lambda place, states: written.append(states.shape[0]) or write(place, states)
    monkeypatch.setattr(hidden_states.OnDisk, "keep", note)
    for spill in (False, True):
        assert not written
        quantize(source, tmp_path / str(spill), SETTINGS, spill=spill)
    assert contents(tmp_path / "True") == contents(tmp_path / "False")
    assert set(written) == {1, 2}  # of three windows


def test_a_full_disk_says_what_is_needed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(np.ndarray):
        def tofile(self, path: object) -> None:
            raise OSError("12 requested and 0 written")

    monkeypatch.setattr(torch.Tensor, "numpy", lambda tensor: np.zeros(1).view(Full))
    with pytest.raises(OutputError, match="12 requested .* --spill needs 4 MB there"):
        hidden_states.OnDisk(tmp_path).keep(torch.zeros(1_000_000))


def test_progress_only_grows_and_ends(source: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    quantize(source, tmp_path / "out", SETTINGS, progress=lambda d, t, what: seen.append((d, t)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1]


def test_another_text_of_the_same_name_starts_anew(source: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    settings = dataclasses.replace(SETTINGS, calibration_text=str(text))

    def stop(done: int, total: int, what: str) -> None:
        if what.startswith("sensitivity"):
            raise _Stopped

    text.write_text("one stone after the other " * 100)
    with pytest.raises(_Stopped):
        quantize(source, tmp_path / "out", settings, progress=stop)
    text.write_text("no notion of another note " * 100)
    seen: list[str] = []
    quantize(source, tmp_path / "out", settings, progress=lambda d, t, what: seen.append(what))
    assert seen[0] == "calibration text"


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"bits": 0.5}, "bits = 0.5"),
        ({"bits": 4.5}, "bits = 4.5"),
        ({"method": "alternating"}, "bits = 2.5"),
        ({"effort": "heroic"}, "effort = 'heroic'"),
        ({"scale_format": "diagonal"}, "scale format = 'diagonal'"),
        ({"calibration_tokens": 0}, "calibration tokens = 0"),
        ({"own_text": 0.5}, "own text = 0.5"),
        ({"own_text": 1.0, "calibration_text": "text.txt"}, "own text = 1.0"),
        ({"criterion": "taste"}, "criterion = 'taste'"),
    ],
)
def test_settings_that_cannot_be_used(fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        dataclasses.replace(SETTINGS, **fields)


def test_stages_have_work() -> None:
    work = quantize_time.stage_work(SETTINGS)
    assert set(work) == {"measure", "allocate", "code", "tune", "end"} and work["tune"] > 0
    assert calibrated.widths(2.2) == [1, 2, 3, 4] and calibrated.widths(4) == [3, 4]
    assert calibrated.widths(1) == [1, 2] and calibrated.widths(3) == [2, 3, 4]


def test_losses_do_not_depend_on_how_many_blocks_are_compared_together(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(source)
    decoder = families.read_config(checkpoint.config)
    store, shares = StatisticsStore(tmp_path / "store"), []
    note = lambda stage, share, what: shares.append(share) if "sensitivity" in what else None
    found = []
    for blocks in (1, 6):
        monkeypatch.setattr(calibrated, "SENSITIVITY_BLOCKS", blocks)
        run = Calibrated(checkpoint, decoder, SETTINGS, store, note)
        run.measure()
        found.append(run.costs_of(decoder.blocks()))
        store.path("costs.json").unlink()
        assert shares == sorted(shares) and shares[-1] == pytest.approx(1)
        shares.clear()
    assert found[0] == found[1]


def test_one_width_is_measured_and_the_others_are_inferred(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(source)
    decoder = families.read_config(checkpoint.config)
    store = StatisticsStore(tmp_path / "store")
    found = []
    for one_width in (False, True):
        amounts = dataclasses.replace(SETTINGS.amounts, one_width=one_width)
        monkeypatch.setattr(QuantizeSettings, "amounts", property(lambda self, a=amounts: a))
        run = Calibrated(checkpoint, decoder, SETTINGS, store, lambda *_: None)
        run.measure()
        run.allocate()
        found.append(run.known_costs())
        store.path("costs.json").unlink()
    measured, inferred = found
    for linear, costs in inferred.items():
        assert list(costs) == list(measured[linear]) == [1, 2, 3, 4]
        assert costs[2] == pytest.approx(measured[linear][2])
        assert costs[4] == pytest.approx(costs[2] * calibrated.LOSS_PER_BIT**2)
        assert costs[1] == pytest.approx(costs[2] / calibrated.LOSS_PER_BIT)
