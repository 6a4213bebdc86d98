"""What `quantize` measured of each linear, kept in the packed model for people: `report` shows it.

    version          1; a reader refuses newer ones
    layers           {linear: {"weight_error", "output_error"}}: relative squared errors of the codes,
                     before scales are tuned; the output error is null without calibration
    expected_loss    {linear: {bits: loss}}: what bits were chosen by; empty where they were given

No stage needs the file: a packed model without it is whole.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from shiftadd_tvm.bcq import MAX_BITS
from shiftadd_tvm.errors import BadFileError, UnsupportedError
from shiftadd_tvm.files import canonical_json
from shiftadd_tvm.packed import QUANTIZATION_REPORT
from shiftadd_tvm.packed_config import read_json

VERSION = 1
ERRORS = ("weight_error", "output_error")
_DIGITS = 6  # that are kept: the last ones of a sum of floats differ between machines

Costs = Mapping[str, Mapping[int, float]]  # linear -> bits -> expected loss


@dataclass(frozen=True)
class Measured:
    """What a packed model's file says; a linear or a width that it does not know is absent."""

    errors: dict[str, dict[str, float | None]]  # linear -> one of ERRORS -> relative squared error
    losses: dict[str, dict[int, float]]  # linear -> bits -> expected loss


def write(folder: Path, layers: Iterable[Mapping[str, object]], costs: Costs) -> None:
    """Write the file into a packed model's `folder`; a layer has "name" and the `ERRORS`."""
    content = {
        "version": VERSION,
        "layers": {
            str(layer["name"]): {key: _rounded(layer[key]) for key in ERRORS} for layer in layers
        },
        "expected_loss": {
            linear: {str(bits): _rounded(loss) for bits, loss in by_bits.items()}
            for linear, by_bits in costs.items()
        },
    }
    (folder / QUANTIZATION_REPORT).write_bytes(canonical_json(content))


def _rounded(value: object) -> float | None:
    """Return a number with its first digits, null for one that JSON lacks."""
    if not isinstance(value, float | int) or not math.isfinite(value):
        return None
    return float(f"{value:.{_DIGITS}g}")


def read(folder: Path, linears: Iterable[str]) -> Measured | None:
    """Return what the packed model at `folder` says of its `linears`; None where it has no file.

    Raises `BadFileError` for a damaged file, `UnsupportedError` for one of a newer version.
    """
    path = folder / QUANTIZATION_REPORT
    if not path.exists():
        return None
    content, known = read_json(path), set(linears)
    version = content.get("version")
    if type(version) is int and version > VERSION:
        raise UnsupportedError(
            f"{path} has version {version}, this shiftadd-tvm reads up to version {VERSION}; "
            "update shiftadd-tvm, or remove the file: only its figures are lost."
        )
    _require(path, version == VERSION and type(version) is int, f"version {VERSION}")
    layers, losses = (_table(path, content, key, known) for key in ("layers", "expected_loss"))
    return Measured(
        {name: {key: _number(path, entry.get(key)) for key in ERRORS} for name, entry in layers},
        {name: dict(_loss(path, *pair) for pair in entry.items()) for name, entry in losses},
    )


def _table(
    path: Path, content: Mapping[str, object], key: str, known: set[str]
) -> list[tuple[str, dict[str, object]]]:
    """Return (linear, object) of every entry of the object under `key`."""
    table = content.get(key)
    if not isinstance(table, dict):
        raise _bad(path, f"an object under {key}")
    for name, entry in table.items():
        _require(path, name in known, f"only linears of the model under {key}, found {name[:80]!r}")
        _require(path, isinstance(entry, dict), f"an object for {name} under {key}")
    return list(table.items())


def _loss(path: Path, bits: str, loss: object) -> tuple[int, float]:
    _require(path, bits in map(str, range(1, MAX_BITS + 1)), f"bits from 1 to {MAX_BITS}")
    found = _number(path, loss)
    return int(bits), math.nan if found is None else found


def _number(path: Path, value: object) -> float | None:
    good = value is None or (type(value) in (int, float) and 0 <= float(str(value)) < math.inf)
    _require(path, good, f"errors and losses that are null, 0 or more, found {str(value)[:40]}")
    return None if value is None else float(str(value))


def _require(path: Path, true: bool, expected: str) -> None:
    if not true:
        raise _bad(path, expected)


def _bad(path: Path, expected: str) -> BadFileError:
    return BadFileError(
        f"{path} is damaged: expected {expected}; remove it (only its figures are lost), or "
        "quantize the checkpoint again."
    )
