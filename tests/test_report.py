"""The verb `report`: the page holds every layer, says what is missing, and needs nothing else."""

import json
import math
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from command import call_here, fails
from conftest import Tiny
from models import save_tiny

from shiftadd_tvm import quantization, quantization_report, report, report_page
from shiftadd_tvm.errors import BadFileError, UnsupportedError
from shiftadd_tvm.packed import QUANTIZATION_REPORT, open_packed
from shiftadd_tvm.quantization import QuantizeReport
from shiftadd_tvm.settings import QuantizeSettings

FROZEN = Path(__file__).parent / "frozen"
USAGE, UNSUPPORTED, BAD_FILE = 2, 3, 4
VOID = ("meta", "br", "hr", "img", "link", "input")


class Page(HTMLParser):
    """A page whose tags must close in order; it keeps texts, tags and attributes."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(content.decode("utf-8"))
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, (tag, self.open)

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.texts.append(data)

    def titled(self) -> set[str]:
        return {text.strip() for text in self.texts}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, QuantizeReport]:
    """A packed model whose linears have bits of their own, and what `quantize` said of it."""
    folder = tmp_path_factory.mktemp("mixed")
    settings = QuantizeSettings(
        bits=2.5, method="shiftadd", effort="fast", calibration_tokens=256, mixed=True
    )
    made = quantization.quantize(save_tiny(folder / "source"), folder / "packed", settings)
    return folder / "packed", made


@pytest.fixture
def packed(mixed: tuple[Path, QuantizeReport], tmp_path: Path) -> Path:
    return Path(shutil.copytree(mixed[0], tmp_path / "packed"))


@pytest.fixture
def artifact(tiny: Tiny, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny.artifact, tmp_path / "artifact"))


def change(path: Path, **fields: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_packed_model(mixed: tuple[Path, QuantizeReport], tmp_path: Path) -> None:
    folder, made = mixed
    child = call_here("report", folder, "-o", "page.html", "--json", cwd=tmp_path)
    assert child.returncode == 0, child.stderr
    found = json.loads(child.stdout)
    layers = {layer.name: layer for layer in made.layers}
    assert [layer["name"] for layer in found["layers"]] == list(layers)
    for layer in found["layers"]:
        same = layers[layer["name"]]
        assert layer["bits"] == same.bits
        assert layer["weight_error"] == pytest.approx(same.weight_error, rel=1e-5)
        assert layer["output_error"] == pytest.approx(same.output_error, rel=1e-5)
        assert layer["expected_loss"][str(layer["bits"])] > 0
    assert sum(layer["loss_share"] for layer in found["layers"]) == pytest.approx(1)
    assert sum(layer["bytes"] for layer in found["layers"]) == found["linear_bytes"]
    assert found["missing"] == []
    page = Page((tmp_path / "page.html").read_bytes())
    assert layers.keys() <= page.titled()
    titles = {"Bits by block and kind", "Errors", "Sensitivity", "Every layer"}
    titles |= {"Operations of one decoded token", "Energy of one decoded token"}
    assert titles <= page.titled() and "Please note" not in page.titled()
    assert page.tags["svg"] == 1 + 7 + 7 + 1  # bits, two errors and losses of 7 kinds, energy


def test_operations_are_those_of_the_layers(mixed: tuple[Path, QuantizeReport]) -> None:
    found = report.gather(mixed[0])
    assert found.work is not None
    lookups = sum(
        layer.shape[0] * layer.bits * math.ceil(layer.shape[1] / 4) for layer in found.layers
    )
    assert found.work.parts["look-ups"].lookups == lookups
    weights = sum(math.prod(layer.shape) for layer in found.layers)
    assert found.work.baseline.multiplies == weights
    quantized = [found.work.parts[part] for part in ("rotation", "scales", "tables", "look-ups")]
    assert all(count.multiplies == count.functions == 0 for count in quantized)


def test_the_page_needs_nothing_and_runs_nothing(mixed: tuple[Path, QuantizeReport]) -> None:
    folder = mixed[0]
    content = report_page.render(report.gather(folder))
    assert content == report_page.render(report.gather(folder))
    page = Page(content)
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert not [
        name for name, _ in page.attributes if name.startswith("on") or name in ("src", "href")
    ]
    for word in (b"http:", b"https:", b"url(", b"@import", str(folder.parent).encode()):
        assert word not in content
    assert b"prefers-color-scheme: dark" in content and b'name="viewport"' in content


def test_artifact(tiny: Tiny) -> None:
    found, packed = report.gather(tiny.artifact), report.gather(tiny.packed)
    assert found.kind == "artifact" and found.effective_bits == packed.effective_bits
    assert found.work is not None and packed.work is not None
    # rows are padded to whole blocks, and what reads an activation is the same
    for part in ("rotation", "attention", "norms", "gate"):
        assert found.work.parts[part] == packed.work.parts[part]
    assert found.work.parts["tables"] == packed.work.parts["tables"]
    assert found.work.parts["look-ups"].lookups >= packed.work.parts["look-ups"].lookups
    page = Page(report_page.render(found))
    assert {layer.name for layer in found.layers} <= page.titled()
    assert "Please note" in page.titled()


def test_files_of_earlier_versions(tmp_path: Path) -> None:
    found = report.gather(FROZEN / "packed-v1")
    assert found.missing == [report.NO_FILE] and len(found.layers) == 7
    assert found.work is not None
    assert {layer.name for layer in found.layers} <= Page(report_page.render(found)).titled()
    old = report.gather(FROZEN / "artifact-v1")
    assert old.work is None and "another version" in old.missing[-1]
    Page(report_page.render(old))


def test_what_a_data_free_method_lacks(packed: Path) -> None:
    path = packed / QUANTIZATION_REPORT
    layers = json.loads(path.read_text())["layers"]
    for errors in layers.values():
        errors["output_error"] = None
    change(path, layers=layers, expected_loss={})
    found = report.gather(packed)
    assert found.missing == [report.NO_OUTPUT_ERROR, report.NO_LOSS]
    assert all(found.share(layer) is None for layer in found.layers)
    page = Page(report_page.render(found))
    assert "Errors" in page.titled() and "Sensitivity" not in page.titled()


def test_the_file_of_measurements(tiny: Tiny, tmp_path: Path) -> None:
    model = open_packed(tiny.packed)
    assert QUANTIZATION_REPORT not in model.tokenizer_files()
    assert not (tiny.artifact / QUANTIZATION_REPORT).exists()
    layers = [
        {"name": name, "weight_error": 1 / 3, "output_error": bad}
        for name, bad in zip(model.linears(), [math.nan, None, 0.0] * 5, strict=False)
    ]
    quantization_report.write(tmp_path, layers, {model.linears()[0]: {2: 0.123456789, 3: math.inf}})
    first = (tmp_path / QUANTIZATION_REPORT).read_bytes()
    quantization_report.write(
        tmp_path, reversed(layers), {model.linears()[0]: {3: math.inf, 2: 0.1234568}}
    )
    assert (tmp_path / QUANTIZATION_REPORT).read_bytes() == first
    measured = quantization_report.read(tmp_path, model.linears())
    assert measured is not None
    errors = measured.errors[model.linears()[2]]
    assert errors == {"weight_error": pytest.approx(1 / 3, rel=1e-5), "output_error": 0.0}
    assert measured.errors[model.linears()[0]]["output_error"] is None
    losses = measured.losses[model.linears()[0]]
    assert losses[2] == 0.123457 and math.isnan(losses[3])


FIRST = "model.layers.0.self_attn.q_proj"
HOSTILE = "<img src=x onerror=alert(1)>"
DAMAGE: dict[str, Any] = {
    "no version": {"version": None},
    "a version that is no number": {"version": "1"},
    "layers that are a list": {"layers": []},
    "a layer of another model": {"layers": {"<b>lm_head": {}}},
    "a layer that is no object": {"layers": {FIRST: 3}},
    "an error that is text": {"layers": {FIRST: {"weight_error": "<script>"}}},
    "a negative error": {"layers": {FIRST: {"weight_error": -1}}},
    "an infinite error": {"layers": {FIRST: {"weight_error": math.inf}}},
    "an error beyond floats": {"layers": {FIRST: {"weight_error": 10**400}}},
    "a loss at no width": {"expected_loss": {FIRST: {"5": 0.1}}},
    "a loss that is a list": {"expected_loss": {FIRST: {"2": []}}},
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_measurements(packed: Path, damage: str) -> None:
    change(packed / QUANTIZATION_REPORT, **DAMAGE[damage])
    with pytest.raises(BadFileError, match="quantization_report.json is damaged: expected"):
        report.gather(packed)
    open_packed(packed)  # everything else goes on without the file


def test_measurements_of_a_newer_version(packed: Path) -> None:
    change(packed / QUANTIZATION_REPORT, version=2)
    with pytest.raises(UnsupportedError, match="reads up to version 1; update"):
        report.gather(packed)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_measurements_that_are_no_object(packed: Path, content: bytes) -> None:
    (packed / QUANTIZATION_REPORT).write_bytes(content)
    with pytest.raises(BadFileError, match=r"quantization_report\.json"):
        report.gather(packed)


def test_names_are_text(artifact: Path) -> None:
    path = artifact / "manifest.json"
    text = path.read_text().replace(FIRST, f"{HOSTILE}.1.</td><script>")
    path.write_text(text)
    page = Page(report_page.render(report.gather(artifact)))
    assert not page.tags["img"] and not page.tags["script"]
    assert f"{HOSTILE}.1.</td><script>" in page.titled()


@pytest.mark.parametrize(
    "shape", [[], [1, 2, 3], [0, 3, 2, 16], [1 << 39, 1 << 39, 1 << 39, 1 << 39]], ids=str
)
def test_hostile_planes(artifact: Path, tmp_path: Path, shape: list[int]) -> None:
    parameters = json.loads((artifact / "manifest.json").read_text())["parameters"]
    entry = next(entry for entry in parameters if entry["name"].endswith(".planes"))
    entry["shape"] = shape
    change(artifact / "manifest.json", parameters=parameters)
    child = call_here("report", artifact, "-o", "page.html", cwd=tmp_path)
    fails(child, BAD_FILE, "not a valid artifact", "compile it again")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("key", "fields"),
    [
        ("quantization", {"bits": None}),
        ("quantization", {"bits": 3, "effective_bits": "3", "linear_bytes": 1}),
        ("quantization", {"bits": 3, "effective_bits": -1, "linear_bytes": 1}),
        ("kernels", None),
        ("model", []),
    ],
    ids=str,
)
def test_hostile_manifests(artifact: Path, key: str, fields: object) -> None:
    change(artifact / "manifest.json", **{key: fields})
    with pytest.raises(BadFileError, match="not a valid artifact"):
        report.gather(artifact)


@pytest.mark.parametrize("layers", [2, 1 << 60])
def test_a_block_that_no_model_has(artifact: Path, layers: int) -> None:
    path = artifact / "manifest.json"
    path.write_text(path.read_text().replace(FIRST, "model.layers.999999999999.q_proj"))
    model = json.loads(path.read_text())["model"]
    change(path, model={**model, "layers": layers})
    with pytest.raises(BadFileError, match=r"blocks and a matrix model.layers.9999"):
        report.gather(artifact)


def test_sizes_that_a_manifest_lacks(artifact: Path) -> None:
    model = json.loads((artifact / "manifest.json").read_text())["model"]
    change(artifact / "manifest.json", model={**model, "heads": None})
    found = report.gather(artifact)
    assert found.work is None and "lacks the model's sizes" in found.missing[-1]
    Page(report_page.render(found))


def test_paths(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("hello")
    for path, word in (
        ("nowhere", "is no folder"),
        ("empty", "without our files"),
        ("text", "no folder"),
    ):
        fails(call_here("report", path, cwd=tmp_path), BAD_FILE, path, word, "quantize or compile")
    fails(call_here("report", tiny.source, cwd=tmp_path), BAD_FILE, "without our files")
    fails(call_here("report", cwd=tmp_path), USAGE, "PATH")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "text"]


def test_outputs(packed: Path, tmp_path: Path) -> None:
    assert call_here("report", "packed", cwd=tmp_path).returncode == 0
    page = tmp_path / "packed-report.html"
    content = page.read_bytes()
    fails(call_here("report", "packed", cwd=tmp_path), USAGE, "already exists", "--force")
    page.write_bytes(content + b"old")
    assert call_here("report", "packed", "--force", cwd=tmp_path).returncode == 0
    assert page.read_bytes() == content
    other = tmp_path / "thesis.html"
    other.write_text("years of work")
    child = call_here("report", "packed", "-o", other, "--force", cwd=tmp_path)
    fails(child, USAGE, "is not replaced, even with --force")
    assert other.read_text() == "years of work"
    child = call_here("report", "packed", "-o", "packed", "--force", cwd=tmp_path)
    fails(child, USAGE, "is not replaced")
    child = call_here("report", "packed", "-o", "thesis.html/page.html", cwd=tmp_path)
    fails(child, USAGE, "cannot be written")
    assert call_here("report", ".", "-o", "in/new/page.html", cwd=packed).returncode == 0
    assert not list(tmp_path.rglob("*.partial"))
