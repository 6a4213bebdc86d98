"""`run` and `eval` work where there is neither torch nor TVM's compiler, and load neither elsewhere."""

import importlib.util
import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from conftest import PROBE, Tiny

ROOT = Path(__file__).resolve().parent.parent
# What a runtime installation needs, by the names of its modules.
NEEDED = [
    *("numpy", "tvm_ffi", "tokenizers", "typer", "jinja2", "markupsafe"),
    *("click", "typing_extensions", "annotated_doc", "shellingham", "rich", "markdown_it", "mdurl"),
    *("pygments", "pydantic", "pydantic_core", "annotated_types", "typing_inspection"),
]
LIBRARIES = ["numpy.libs"]  # shared libraries beside a package
HEAVY = {"torch", "transformers", "tvm", "xgboost", "onnx", "scipy", "safetensors"}


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of links to what is needed, and of TVM its runtime library alone."""
    folder = tmp_path_factory.mktemp("bare")
    for name in NEEDED:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            continue  # not a requirement of this version of typer
        origin = Path(spec.origin)
        origin = origin.parent if spec.submodule_search_locations else origin
        (folder / origin.name).symlink_to(origin)
    site = Path(sysconfig.get_paths()["purelib"])
    for name in LIBRARIES:
        if (site / name).is_dir():
            (folder / name).symlink_to(site / name)
    (folder / "shiftadd_tvm").symlink_to(ROOT / "shiftadd_tvm")
    spec = importlib.util.find_spec("tvm")
    assert spec is not None and spec.submodule_search_locations
    runtime = Path(spec.submodule_search_locations[0]) / "lib" / "libtvm_runtime.so"
    (folder / "tvm" / "lib").mkdir(parents=True)
    (folder / "tvm" / "lib" / runtime.name).symlink_to(runtime)
    return folder


def in_bare(bare: Path, *arguments: object) -> tuple[dict[str, object], set[str]]:
    """Return a command's JSON and the modules it imported, with nothing but `bare` installed."""
    child = subprocess.run(
        [sys.executable, "-S", "-c", PROBE, *map(str, arguments), "--json"],
        env={"PYTHONPATH": str(bare), "PATH": "/usr/bin:/bin"},
        cwd=bare,
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    fields, modules = child.stdout.splitlines()
    return json.loads(fields), set(json.loads(modules))


def test_what_is_missing_is_missing(bare: Path) -> None:
    for name in ("torch", "tvm.relax", "transformers", "scipy"):
        child = subprocess.run(
            [sys.executable, "-S", "-c", f"import {name}"],
            env={"PYTHONPATH": str(bare)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert "ModuleNotFoundError" in child.stderr, name


def test_run(tiny: Tiny, bare: Path) -> None:
    report, modules = in_bare(bare, "run", tiny.artifact, "--prompt", "hi", "--max-new-tokens", 8)
    assert report["tokens"] == 8
    assert not HEAVY & modules


def test_eval(tiny: Tiny, bare: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("A packed model is planes and powers of two. " * 5)
    options = ("--text", tmp_path / "text", "--window", 32)
    report, modules = in_bare(bare, "eval", tiny.artifact, *options)
    assert isinstance(report["perplexity"], float)
    assert not HEAVY & modules


def test_bench(tiny: Tiny, bare: Path) -> None:
    options = ("--prompt-tokens", 8, "--new-tokens", 5, "--threads", 1)
    report, modules = in_bare(bare, "bench", tiny.artifact, *options)
    assert report["dram_bandwidth_bytes_per_second"]
    assert not HEAVY & modules


def test_a_full_installation_loads_no_more(tiny: Tiny) -> None:
    child = subprocess.run(
        [sys.executable, "-c", PROBE, "run", tiny.artifact, "--prompt", "hi", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not HEAVY & set(json.loads(child.stdout.splitlines()[-1]))
