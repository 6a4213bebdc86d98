"""Time the look-ups of an archive on the GPU of this machine, and what they are compared with:

    python3 kernels.pyz [-o kernels.json]

It needs a driver and Python 3.10 or newer, and nothing else; cuBLAS takes part where it is installed.
Everything is checked against the numbers of the NumPy reference before it is timed, ours bit by bit. A
round is a turn of each: the memory's roof, and a graph of launches of each contender that goes through
copies of its weights, so that no cache keeps them. A shape runs in a process of its own.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from typing import Any

from shiftadd_tvm.cuda.cublas import Cublas
from shiftadd_tvm.cuda.gpu import Fields, Gpu, MeasureError, Program, check_fits
from shiftadd_tvm.cuda.reading import Reading
from shiftadd_tvm.cuda.uploaded import Uploaded

SHAPES, TIMES, SCHEMA = "kernels.json", "kernels.json", 1
OURS = "ours"
ROUNDS = 31  # turns of each contender
TIMEOUT = 1200  # seconds, of a shape


class Contender:
    """One way to multiply an activation by a matrix, in one variant or several."""

    def __init__(self, gpu: Gpu, archive: zipfile.ZipFile, fields: Fields, cold: int) -> None:
        """Upload everything: weights of `cold` bytes together, at least."""
        self._gpu, self._archive, self.fields = gpu, archive, fields
        self._uploaded = Uploaded(gpu, archive, fields, cold)
        self.launches = self._uploaded.launches

    def variants(self) -> Iterator[tuple[Fields, Any]]:
        """Yield each variant with a graph of launches; raises `MeasureError` for wrong numbers."""
        for variant in self.fields["variants"]:
            run = self._program(variant)
            self._check(self._uploaded.result(run), self._uploaded.expected)
            yield variant, self._uploaded.graph(run)

    def _program(self, variant: Fields) -> Program:
        if "sizes" in variant:
            return functools.partial(Cublas(self._gpu).linear, variant["sizes"])
        image = self._archive.read(variant["image"])
        program = self._gpu.program(image, variant["launches"])
        return functools.partial(program, overlapping=variant["overlapping"])

    def _check(self, found: bytes, expected: bytes) -> None:
        given, wanted = (numbers(data, self.fields["kind"]) for data in (found, expected))
        if found != expected and not close(given, wanted, self.fields["room"]):
            raise MeasureError("it computes other numbers than the reference")


def numbers(data: bytes, kind: str) -> list[float]:
    """Return the numbers of little-endian data, of a `kind` of the module struct: "f" or "e"."""
    return list(struct.unpack(f"<{len(data) // struct.calcsize(kind)}{kind}", data))


def close(found: list[float], expected: list[float], room: float) -> bool:
    """Tell whether all numbers agree within `room` of the largest expected one."""
    most = room * max(map(abs, expected))
    return all(abs(a - b) <= most for a, b in zip(found, expected, strict=True)) and room > 0


def spread(values: list[float]) -> float:
    """Return the distance of the quartiles as a fraction of the median."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / statistics.median(values)


def time_shape(path: str, index: int) -> Fields:
    """Return the roof and the times of all contenders of one shape."""
    with zipfile.ZipFile(path) as archive:
        made = json.loads(archive.read(SHAPES))
        gpu, fields = Gpu(), made["shapes"][index]
        reading = Reading(gpu, archive.read(made["roof"]), made["roof_bytes"])
        graphs, absent = [], {}
        for own in fields["contenders"]:
            try:
                contender = Contender(gpu, archive, own, made["cold_bytes"])
                graphs += [(contender, *variant) for variant in contender.variants()]
            except MeasureError as error:
                absent[own["name"]] = {"error": str(error), "ratio": None}
    return _timed(gpu, reading, graphs, absent)


def _timed(gpu: Gpu, reading: Reading, graphs: list[Any], absent: Fields) -> Fields:
    events = gpu.event(), gpu.event()
    rates: dict[str, list[float]] = {}
    times: list[list[float]] = [[] for _ in graphs]
    for _ in range(1 + ROUNDS):  # the first round wakes the GPU
        for name, rate in reading.rates().items():
            rates.setdefault(name, []).append(rate)
        for taken, (contender, _, graph) in zip(times, graphs, strict=True):
            taken.append(gpu.seconds(graph, *events) / contender.launches)
    found: Fields = dict(absent)
    for taken, (contender, variant, _) in zip(times, graphs, strict=True):
        seconds, name = statistics.median(taken[1:]), contender.fields["name"]
        if name not in found or seconds < found[name]["seconds"]:
            own = {"weight_bytes": contender.fields["weight_bytes"], "values": variant["values"]}
            found[name] = {**own, "seconds": seconds, "spread": spread(taken[1:])}
    readings = {name: values[1:] for name, values in rates.items()}
    return {"rates": readings, "contenders": found}


def report(fields: Fields, result: Fields) -> str:
    """Return a line for each contender of a shape."""
    rates = max((statistics.median(r) for r in result["rates"].values()), default=0.0)
    outputs, inputs = fields["shape"]
    head = f"{outputs} x {inputs}, {fields['bits']} bits; roof {rates / 1e9:.0f} GB/s"
    ours, lines = result["contenders"].get(OURS, {}), [head]
    for name, entry in result["contenders"].items():
        if "error" in entry:
            lines.append(f"  {name}: {entry['error']}")
            continue
        share = entry["weight_bytes"] / entry["seconds"] / rates
        line = f"  {name}: {entry['seconds'] * 1e6:.2f} us (± {entry['spread']:.0%}), "
        line += f"{share:.1%} of the roof"
        if name != OURS and "seconds" in ours:
            line += f"; we are {entry['seconds'] / ours['seconds']:.2f} x"
        lines.append(line)
    return "\n".join(lines)


def measure(path: str, output: str) -> None:
    """Time every shape of the archive at `path`; write the results to `output` and print them."""
    with zipfile.ZipFile(path) as archive:
        made = json.loads(archive.read(SHAPES))
    device = Gpu().describe()
    check_fits(path, made["arch"], device)
    results: list[Fields] = []
    for index, fields in enumerate(made["shapes"]):
        results.append({"shape": fields["shape"], **_child(path, index, fields)})
        print(report(fields, results[-1]), flush=True)
        with open(output + ".partial", "w", encoding="utf-8") as file:
            json.dump({"schema": SCHEMA, "device": device, "shapes": results}, file, indent=1)
        os.replace(output + ".partial", output)


def _child(path: str, index: int, fields: Fields) -> Fields:
    command = [sys.executable, path, "--shape", str(index)]
    child = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    if child.returncode:
        said = child.stderr.strip().splitlines() or [f"crashed (status {child.returncode})"]
        raise MeasureError(f"{'x'.join(map(str, fields['shape']))} cannot be timed: {said[-1]}")
    found: Fields = json.loads(child.stdout)
    return found


def main(arguments: list[str]) -> int:
    """Run the program; the path of the archive is that of the program itself."""
    path = os.path.abspath(sys.argv[0])
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    beside = os.path.join(os.path.dirname(path), TIMES)
    parser.add_argument("-o", "--output", default=beside, help=f"default: {TIMES} beside it")
    parser.add_argument("--shape", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    try:
        if given.shape is None:
            measure(path, given.output)
        else:
            print(json.dumps(time_shape(path, given.shape)))
    except MeasureError as error:
        print(error, file=sys.stderr)
        return 3
    return 0
