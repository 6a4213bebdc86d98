"""The house rules that a machine can check: sizes, rooms, protocols, lazy imports, clean files."""

import ast
import importlib
import json
import pkgutil
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILE_CEILING = 400  # lines
FUNCTION_CEILING = 60  # lines, with docstring, without decorators
SOURCE_FOLDERS = ("shiftadd_tvm", "schedules", "tuning_logs", "examples")
# What `--help` must not wait for.
HEAVY = ("torch", "transformers", "tvm", "tvm_ffi", "onnx", "xgboost", "scipy", "gguf")
# Modules that belong to no room, since they lead from one to the next without importing at once.
ROOMLESS = {"__init__", "__main__", "cli", "workflow"}

# Written so that this file does not contain what it forbids.
FORBIDDEN = re.compile(
    "|".join(
        [
            *("TO" + "DO", "FIX" + "ME", "X" + "XX"),
            *(r"breakpoint\(" + r"\)", "<" * 7 + " ", ">" * 7 + " "),
            *("/" + "work/", "/" + "root/", r"/" + r"home/\w", r"/" + r"Users/\w", "/" + "tmp/w/"),
        ]
    )
)


def sources() -> list[Path]:
    files = [path for folder in SOURCE_FOLDERS for path in (ROOT / folder).rglob("*.py")]
    return sorted(path.relative_to(ROOT) for path in files)


def tracked_files() -> list[Path]:
    """Return the files that git tracks or would track; without git, the Python sources."""
    if shutil.which("git") is None:
        return sources()
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    names = [name for name in result.stdout.split("\0") if name]
    return [Path(name) for name in names if (ROOT / name).is_file()] or sources()


@pytest.mark.parametrize("path", sources(), ids=str)
def test_sizes_and_docstring(path: Path) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert ast.get_docstring(tree), f"{path} does not say what its one job is"
    assert len(text.splitlines()) <= FILE_CEILING, f"{path} is over {FILE_CEILING} lines: split it"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= FUNCTION_CEILING, f"{path}: {node.name} has {lines} lines: split it"


def variations() -> list[tuple[str, str]]:
    """Return (package, module) for every variation that is found by its file's name."""
    packages = ["accuracy.methods", "decoders", "encoder_families", "families", "ops", "quantizers"]
    targets = [path.parent.name for path in sorted((ROOT / "schedules").glob("*/__init__.py"))]
    packages += [f"schedules.{target}" for target in targets]
    folders = {name: ROOT / "shiftadd_tvm" / name.replace(".", "/") for name in packages}
    folders |= {f"schedules.{target}": ROOT / "schedules" / target for target in targets}
    return [
        (f"shiftadd_tvm.{package}", module.name)
        for package in packages
        for module in pkgutil.iter_modules([str(folders[package])])
        if not module.name.startswith("_")  # a helper of its neighbours, no variation
    ]


@pytest.mark.parametrize(("package", "name"), variations(), ids="-".join)
def test_variation_has_what_its_package_requires(package: str, name: str) -> None:
    # What a schedule file must define is said once for all targets.
    declaring = "shiftadd_tvm.schedules" if ".schedules." in package else package
    required = importlib.import_module(declaring).REQUIRED
    assert isinstance(required, tuple) and required
    module = importlib.import_module(f"{package}.{name}")
    missing = [attribute for attribute in required if not hasattr(module, attribute)]
    assert not missing, f"{package}.{name} lacks {missing}"


def test_every_module_has_a_room() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    housed = {name for contract in contracts for name in contract["source_modules"]}
    modules = {module.name for module in pkgutil.iter_modules([str(ROOT / "shiftadd_tvm")])}
    modules |= {name for name in ("schedules", "tuning_logs") if (ROOT / name).is_dir()}
    homeless = {name for name in modules - ROOMLESS if f"shiftadd_tvm.{name}" not in housed}
    assert not homeless, f"add to a contract of [tool.importlinter]: {sorted(homeless)}"


def test_command_line_imports_nothing_heavy() -> None:
    code = "import json, sys, shiftadd_tvm.cli; print(json.dumps(sorted(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = {name.partition(".")[0] for name in json.loads(result.stdout.splitlines()[-1])}
    assert not loaded & set(HEAVY)


@pytest.mark.parametrize("name", ["schedules", "tuning_logs"])
def test_mapped_packages_are_installed(name: str) -> None:
    module = importlib.import_module(f"shiftadd_tvm.{name}")
    assert module.__file__ and Path(module.__file__).is_file()


def test_files_hold_nothing_that_belongs_elsewhere() -> None:
    found = []
    for path in tracked_files():
        try:
            text = (ROOT / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a binary fixture
        for number, line in enumerate(text.splitlines(), 1):
            if match := FORBIDDEN.search(line):
                found.append(f"{path}:{number}: {match[0]!r}")
    assert not found, "unfinished work or a path of one machine: " + "; ".join(found)
