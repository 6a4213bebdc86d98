"""How long a linear takes in a decode step, by its shape and bits: what `bench --kernel --json` wrote.

One run measures one number of bits; a table is put together from several.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from shiftadd_tvm.errors import BadFileError, UsageError

Latencies = Mapping[str, Mapping[int, float]]  # "NxK" -> bits -> microseconds


def shape_name(shape: tuple[int, ...]) -> str:
    """Return (outputs, inputs) as a key of `Latencies`."""
    return "x".join(map(str, shape))


def read(files: Iterable[Path]) -> dict[str, dict[int, float]]:
    """Return the latencies in files of `bench --kernel --json`; raises `BadFileError` for others."""
    found: dict[str, dict[int, float]] = {}
    for file in files:
        try:
            fields = json.loads(file.read_text("utf-8"))
            for kernel in fields["kernels"]:
                by_bits = found.setdefault(shape_name(tuple(map(int, kernel["shape"]))), {})
                by_bits[int(fields["bits"])] = float(kernel["microseconds"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadFileError(
                f"{file} is no table of latencies ({type(error).__name__}), expected what "
                "shiftadd-tvm bench --kernel --synthetic NAME --bits B --json writes."
            ) from error
    return found


def check(latencies: Latencies, shapes: Iterable[tuple[int, ...]]) -> None:
    """Raise `UsageError` unless each of `shapes` is known at the same two numbers of bits or more."""
    wanted = [shape_name(shape) for shape in shapes]
    missing = sorted({name for name in wanted if name not in latencies})
    if missing:
        raise UsageError(
            f"--latencies say nothing of linears {', '.join(missing)}; measure them: shiftadd-tvm "
            f"bench --kernel --shape {','.join(missing)} --bits B --json."
        )
    common = set.intersection(*(set(latencies[name]) for name in wanted))
    if len(common) < 2:
        raise UsageError(
            f"--latencies know all linears of this model at {len(common)} numbers of bits, expected 2 "
            "or more; give a file of bench --kernel --json for each number of bits."
        )
