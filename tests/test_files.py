"""Outputs appear whole or not at all, and never over something that is not ours."""

import errno
import hashlib
import json
import os
import resource
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from shiftadd_tvm import files
from shiftadd_tvm.errors import OutputError
from shiftadd_tvm.tensorfile import Source, stream_tensors

MARKER = "manifest.json"


def make(output: Path, text: str = "new", **options: bool) -> None:
    with files.staged(output, MARKER, **options) as staging:
        (staging / MARKER).write_text(text)


def test_the_output_appears_at_the_end_only(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "out"
    with files.staged(output, MARKER) as staging:
        (staging / MARKER).write_text("x")
        assert not output.exists() and staging.parent == output.parent
    assert [path.name for path in output.parent.iterdir()] == ["out"]
    assert (output / MARKER).read_text() == "x"


def test_a_failing_body_leaves_nothing(tmp_path: Path) -> None:
    for error in (RuntimeError, KeyboardInterrupt, SystemExit):
        with pytest.raises(error), files.staged(tmp_path / "out", MARKER) as staging:
            (staging / "half").write_text("x")
            raise error
        assert not list(tmp_path.iterdir())


def test_a_failing_body_leaves_its_work_where_asked(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        with files.staged(output, MARKER, keep_on_failure=True) as staging:
            (staging / "block.1").write_text("x")
            raise KeyboardInterrupt
    assert not output.exists()
    with files.staged(output, MARKER, keep_on_failure=True) as staging:
        assert (staging / "block.1").read_text() == "x"
    assert (output / "block.1").exists() and not staging.exists()


def test_left_overs_of_a_killed_run_do_not_leak_into_the_output(tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "old").write_text("x")
    make(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [MARKER]


def test_an_existing_output_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "out", "old")
    with pytest.raises(OutputError, match="already exists.*--force"):
        make(tmp_path / "out")
    assert (tmp_path / "out" / MARKER).read_text() == "old"


def test_force_replaces_our_own_output(tmp_path: Path) -> None:
    make(tmp_path / "out", "old")
    (tmp_path / "out" / "stale").write_text("x")
    make(tmp_path / "out", "new", force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == [MARKER]
    assert (tmp_path / "out" / MARKER).read_text() == "new"


def test_force_does_not_replace_what_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    for name in ("home", "file"):
        with pytest.raises(OutputError, match=f"not replaced, even with --force.*{MARKER}"):
            make(tmp_path / name, force=True)
    assert (tmp_path / "home" / "thesis.tex").exists() and (tmp_path / "file").is_file()


def test_a_failing_replacement_keeps_the_old_output(tmp_path: Path) -> None:
    make(tmp_path / "out", "old")
    with pytest.raises(RuntimeError), files.staged(tmp_path / "out", MARKER, force=True):
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / MARKER).read_text() == "old"


def test_an_interruption_while_replacing_keeps_the_old_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "out", "old")
    rename = Path.rename

    def interrupted(path: Path, target: Path) -> Path:
        if path.name == "out.partial":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "out", "new", force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / MARKER).read_text() == "old"


def test_force_after_a_run_that_was_killed_while_it_replaced(tmp_path: Path) -> None:
    make(tmp_path / "out", "old")
    make(tmp_path / "out.replaced", "older")
    make(tmp_path / "out", "new", force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / MARKER).read_text() == "new"


def test_force_on_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "out", "old")
    monkeypatch.chdir(tmp_path / "out")
    make(Path("."), "new", force=True)
    assert (tmp_path / "out" / MARKER).read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *args: object, **kwargs: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(OutputError, match="out cannot be written: No space left on device"):
        make(tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def small_files() -> Iterator[None]:
    """Let no file grow beyond 4 KiB, as on a disk that fills up while it is written."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("small_files")
def test_tensors_that_do_not_fit(tmp_path: Path) -> None:
    source = Source("x", "U8", (100_000,), lambda: np.zeros(100_000, np.uint8))
    with pytest.raises(OutputError, match="cannot be written"):
        with files.staged(tmp_path / "out", MARKER) as staging:
            stream_tensors(staging / "model.safetensors", [source])
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_place(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(OutputError, match="cannot be written: Permission denied"):
        make(tmp_path / "out")


def test_a_place_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot be written"):
        make(tmp_path / "file" / "out")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a place that nobody may write")
def test_a_place_that_nobody_may_write() -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        make(Path("/proc/out"))


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc" * 1_000_000)
    assert files.sha256(tmp_path / "a") == hashlib.sha256(b"abc" * 1_000_000).hexdigest()


def test_canonical_json() -> None:
    value = {"b": [1, 2.5, None], "a": "ü", "c": {"z": True, "y": {}}}
    text = files.canonical_json(value)
    assert text == files.canonical_json(dict(reversed(value.items())))
    assert text.endswith(b"}\n") and "ü".encode() in text


def test_compact_json() -> None:
    """A line for each entry of a list or object in the manifest, none within."""
    value = {"b": [{"n": [1, 2]}, 3], "a": {"z": "ü", "y": {"x": None}}, "c": {}}
    text = files.compact_json(value)
    assert json.loads(text) == value and text == files.compact_json(dict(reversed(value.items())))
    lines = ["{", '"a":{', '"y":{"x":null},', '"z":"ü"', "},", '"b":[', '{"n":[1,2]},', "3", "],"]
    assert text.decode().splitlines() == [*lines, '"c":{}', "}"]
