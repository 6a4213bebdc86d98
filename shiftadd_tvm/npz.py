"""Read and write `.npz` files of named arrays, as the command line takes and gives them."""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from shiftadd_tvm import files
from shiftadd_tvm.errors import BadFileError

MARK = b"PK"  # how every .npz begins: it is a zip file

Array = np.ndarray


def read(path: Path) -> dict[str, Array]:
    """Return the arrays of `path` by name; `BadFileError` for anything else. Nothing is unpickled."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            if not isinstance(stored, np.lib.npyio.NpzFile):
                raise ValueError("it holds one array without a name")
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise BadFileError(
            f"{path} cannot be read ({reason}); expected an .npz file, as numpy.savez writes it."
        ) from None


def refuse_existing(path: Path, force: bool) -> None:
    """Raise `OutputError` where `path` exists and may not be replaced."""
    files.refuse_existing_file(path, MARK, force)


def write(path: Path, arrays: Mapping[str, Array], *, force: bool = False) -> None:
    """Write arrays by name, whole or not at all; `OutputError` where that is not possible."""
    buffer = io.BytesIO()
    np.savez(buffer, **dict(arrays))  # type: ignore[arg-type]  # mypy takes them for its flags
    files.write_file(path, buffer.getvalue(), MARK, force=force)
