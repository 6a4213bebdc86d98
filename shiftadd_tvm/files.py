"""Write outputs whole or not at all: a staging folder beside the output, renamed at the end."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from shiftadd_tvm.errors import OutputError


def user_cache() -> Path:
    """Return our folder in the user's cache, which may not exist yet."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "shiftadd-tvm"


def sha256(path: Path) -> str:
    """Return the hex sha256 of a file, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def flush(folder: Path) -> None:
    """Return when the files of `folder` are on the disk."""
    for path in folder.iterdir():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())


def canonical_json(value: object) -> bytes:
    """Return `value` as indented JSON, keys sorted, with a newline: same value, same bytes."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode("utf-8")


def compact_json(value: object) -> bytes:
    """Return `value` as `canonical_json` does, but lines end at its first two levels, and no blanks.

    A manifest lists hundreds of tensors: with a line for each number, half of it is white space.
    """
    return (_lines(value, 2) + "\n").encode("utf-8")


def _lines(value: object, levels: int) -> str:
    write = lambda part: json.dumps(part, separators=(",", ":"), sort_keys=True, ensure_ascii=False)
    if not levels or not value or not isinstance(value, dict | list):
        return write(value)
    if isinstance(value, list):
        return "[\n" + ",\n".join(_lines(entry, levels - 1) for entry in value) + "\n]"
    members = (f"{write(key)}:{_lines(value[key], levels - 1)}" for key in sorted(value))
    return "{\n" + ",\n".join(members) + "\n}"


def refuse_existing(output: Path, marker: str, force: bool) -> None:
    """Raise `OutputError` when `output` exists and may not be replaced.

    Even `force` replaces only a folder that holds `marker`, a file by which our own outputs are
    known: a mistyped -o must not delete a checkpoint or a home directory.
    """
    if not output.exists():
        return
    if not force:
        raise OutputError(
            f"{output} already exists; choose another -o, or replace it with --force."
        )
    if not (output / marker).is_file():
        raise OutputError(
            f"{output} is not replaced, even with --force: it holds no {marker}, so it was not "
            "written by this verb; choose another -o or remove it yourself."
        )


def refuse_existing_file(output: Path, mark: bytes, force: bool) -> None:
    """Raise `OutputError` when the file `output` exists and may not be replaced.

    Even `force` replaces only a file that begins with `mark`, by which our own are known.
    """
    if not output.exists() and not output.is_symlink():
        return
    if not force:
        raise OutputError(
            f"{output} already exists; choose another -o, or replace it with --force."
        )
    if not output.is_file() or not _begins(output, mark):
        raise OutputError(
            f"{output} is not replaced, even with --force: it was not written by this verb; choose "
            "another -o or remove it yourself."
        )


def _begins(path: Path, mark: bytes) -> bool:
    try:
        with path.open("rb") as stream:
            return stream.read(len(mark)) == mark
    except OSError:
        return False


def write_file(output: Path, content: bytes, mark: bytes, *, force: bool = False) -> None:
    """Write a file whole or not at all; an existing one goes only as `refuse_existing_file` allows.

    `content` begins with `mark`. Raises `OutputError` for missing permission or a full disk too.
    """
    refuse_existing_file(output, mark, force)
    temporary = output.with_name(output.name + ".partial")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(output)
    except OSError as error:
        raise OutputError(f"{output} cannot be written: {error.strerror or error}.") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def staged(
    output: Path, marker: str, *, force: bool = False, keep_on_failure: bool = False
) -> Iterator[Path]:
    """Yield the folder `<output>.partial`, which becomes `output` when the body ends well.

    An existing `output` is replaced only as `refuse_existing` allows, and only at the very end.
    When the body fails the staging folder goes, unless `keep_on_failure` says that a later run
    resumes from it.
    Raises `OutputError` for an existing output, missing permission or a full disk.
    """
    refuse_existing(output, marker, force)
    target = output.resolve()  # "." and ".." have no name to build upon
    staging = target.with_name(target.name + ".partial")
    try:
        if staging.exists() and not keep_on_failure:
            shutil.rmtree(staging)
        staging.mkdir(parents=True, exist_ok=True)
        yield staging
        _publish(staging, target)
    except OSError as error:
        raise OutputError(f"{output} cannot be written: {error.strerror or error}.") from error
    finally:
        if not keep_on_failure:  # once published, there is nothing left to remove
            shutil.rmtree(staging, ignore_errors=True)


def _publish(staging: Path, output: Path) -> None:
    replaced = output.with_name(output.name + ".replaced")
    try:
        if output.exists():
            shutil.rmtree(replaced, ignore_errors=True)  # of a run that was killed here
            output.rename(replaced)
        staging.rename(output)
    finally:  # an interruption in between must not cost the old output
        if replaced.exists() and not output.exists():
            replaced.rename(output)
    shutil.rmtree(replaced, ignore_errors=True)
