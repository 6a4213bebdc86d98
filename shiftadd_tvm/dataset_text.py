"""Calibration text by the name of a data set, read with Hugging Face's `datasets` (extra `datasets`).

    NAME or OWNER/NAME, with :CONFIG behind it where the data set has several

It is streamed: no more is fetched than is taken, the first texts of its split "train".
"""

import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import cast

from shiftadd_tvm.errors import BadFileError, UsageError

_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")
_ENOUGH = 4_000_000  # characters: more than any effort takes, even of a text of short tokens


def is_name(text: str) -> bool:
    """Tell whether `text` can be a data set's name, rather than a text file's."""
    return bool(_NAME.fullmatch(text)) and not text.endswith((".txt", ".jsonl", ".npz"))


@functools.cache
def read(name: str) -> str:
    """Return the first texts of a data set, an empty line between them.

    Raises `UsageError` where the package is missing, or the data set has no texts, `BadFileError` where
    it cannot be got.
    """
    try:
        import datasets
    except ImportError:
        raise UsageError(
            f"{name} is not a file, and to take it for a data set the package `datasets` is missing; "
            "give a .txt or .jsonl file, or install shiftadd-tvm[datasets]."
        ) from None
    path, _, config = name.partition(":")
    try:
        rows = datasets.load_dataset(path, config or None, split="train", streaming=True)
        return "\n\n".join(_texts(name, cast(Iterable[Mapping[str, object]], rows)))
    except UsageError:
        raise
    except Exception as error:  # noqa: BLE001  the library and its network raise nothing narrower
        reason = " ".join(str(error).split()).rstrip(".")
        raise BadFileError(
            f"{name} is not a file, and as a data set it cannot be got ({reason}); give a .txt or "
            ".jsonl file, or the name of a data set that can be reached."
        ) from None


def _texts(name: str, rows: Iterable[Mapping[str, object]]) -> Iterator[str]:
    """Yield the texts of `rows` until they are enough."""
    size = 0
    for row in rows:
        text = row.get("text")
        if not isinstance(text, str):
            raise UsageError(
                f'The data set {name} has the columns {sorted(row)}, expected texts under "text"; '
                "give another one, or a .txt or .jsonl file."
            )
        yield text
        size += len(text)
        if size >= _ENOUGH:
            return
