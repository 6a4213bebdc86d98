"""One tiny model for every test that needs one: its checkpoint, packed model and artifact.

They are made once a session by the command line itself, whatever the number of pytest's workers, and
nobody may change them.
"""

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from models import save_tiny

POSITIONS = 320  # of the tiny model: more than a prefill chunk has rows
CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
# little and quick; every linear gets the same bits
CALIBRATION = ("--effort", "fast", "--calib-tokens", "256", "--uniform")
# the command in this interpreter, which says afterwards what it imported
PROBE = (
    "import json, sys; from shiftadd_tvm.cli import run_command; status = run_command(sys.argv[1:]); "
    "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules}))); sys.exit(status)"
)


@dataclass(frozen=True)
class Tiny:
    """Paths of the tiny model, and what the verbs that made them printed."""

    root: Path

    source = property(lambda self: self.root / "source")
    packed = property(lambda self: self.root / "packed")
    artifact = property(lambda self: self.root / "artifact")

    def report(self, verb: str) -> dict[str, Any]:
        return json.loads((self.root / f"{verb}.json").read_text().splitlines()[0])

    def imported(self, verb: str) -> set[str]:
        return set(json.loads((self.root / f"{verb}.json").read_text().splitlines()[1]))


def _call(root: Path, verb: str, *arguments: str) -> None:
    command = [sys.executable, "-c", PROBE, verb, *arguments, "--json"]
    child = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    (root / f"{verb}.json").write_text(child.stdout)


def _build(root: Path) -> None:
    root.mkdir()
    save_tiny(root / "source", max_position_embeddings=POSITIONS)
    (root / "source" / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    _call(root, "quantize", "source", "--bits", "3", *CALIBRATION, "-o", "packed")
    _call(root, "compile", "packed", "-o", "artifact")
    (root / "done").touch()


@pytest.fixture(scope="session", autouse=True)
def quick_parsing() -> Iterator[None]:
    """Find TVMScript's parser by the globals of the frames alone.

    TVM gathers the source lines of every frame of the stack for each inlined step, which under pytest,
    with torch loaded, takes most of the time of compiling.
    """
    from tvm.script.parser.core.parser import ScriptMacro

    def find(macro: ScriptMacro) -> object:
        frame = sys._getframe(1)
        while (parser := frame.f_globals.get(ScriptMacro.parser_object_name)) is None:
            assert frame.f_back is not None, "an inlined step outside of a function"
            frame = frame.f_back
        return parser

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScriptMacro, "_find_parser_def", find)
        yield


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep the user's tuning logs out of the tests, and the tests' out of the user's cache."""
    kept = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = tmp_path_factory.mktemp("cache")
    (cache / "shiftadd-tvm").mkdir()
    # of other machines, for which 98 MB of wheels are fetched; and compiled code, known by its sources
    for name in ("runtime_libraries", "native"):
        (kept / "shiftadd-tvm" / name).mkdir(parents=True, exist_ok=True)
        (cache / "shiftadd-tvm" / name).symlink_to(kept / "shiftadd-tvm" / name)
    with pytest.MonkeyPatch.context() as patch:
        if "ZIG_GLOBAL_CACHE_DIR" not in os.environ:  # of the C library that zig builds
            patch.setenv("ZIG_GLOBAL_CACHE_DIR", str(kept / "zig"))
        patch.setenv("XDG_CACHE_HOME", str(cache))
        yield cache


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # each worker has its own folder below the session's
        base = base.parent
    with (base / "tiny.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (base / "tiny" / "done").exists():
            _build(base / "tiny")
    return Tiny(base / "tiny")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the modules that take minutes, so that the two workers end together."""
    slow = ("test_real_model.py", "test_variants.py", "test_cli_bad_input.py")
    order = {name: place for place, name in enumerate(slow)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))
