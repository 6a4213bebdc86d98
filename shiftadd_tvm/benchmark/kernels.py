"""The bench of single operators: one decode linear of a shape, cold, its peers, and the memory's roof.

A round is a turn of each contender: memory probe, our linear, each peer's. A turn is a few calls of as
many linears as fill a call, and gives their median; the first call of a turn wakes threads and is not
counted. All bytes of a weight count: planes and scales.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shiftadd_tvm.benchmark import game, memory, peers, statistics
from shiftadd_tvm.benchmark.game import Game
from shiftadd_tvm.benchmark.turns import Contender, Fields
from shiftadd_tvm.errors import UsageError

ROUNDS = 11
CALLS = 5  # of a turn
LARGEST = 1 << 20  # of a shape's sizes

Progress = Callable[[int, int, str], None]
Shape = tuple[int, int]


@dataclass(frozen=True)
class Request:
    """What is to be measured, on one target."""

    shapes: Sequence[Shape]  # (outputs, inputs)
    bits: int
    target: str
    threads: int = 1
    baselines: bool = False
    probe_bytes: int | None = None  # None: several times the last cache
    cold_bytes: int | None = None  # None: more than the last cache keeps
    activations: str = "int16"
    scales: str = "separable"  # or "row-group"


def parse_shapes(text: str) -> list[Shape]:
    """Return (outputs, inputs) of each "NxK" of a comma-separated list; raises `UsageError`."""
    found = []
    for word in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*[xX×]\s*(\d+)\s*", word)
        sizes = (int(match[1]), int(match[2])) if match else (0, 0)
        if not all(0 < size <= LARGEST for size in sizes) or sizes[1] % 8:
            raise UsageError(
                f"--shape has {word.strip()!r}, expected outputs x inputs such as 4096x11008, the "
                "inputs a multiple of 8."
            )
        found.append(sizes)
    return found


def measure(request: Request, progress: Progress = lambda done, total, what: None) -> Fields:
    """Return the fields of `bench --kernel --json`."""
    load, rows, rates = statistics.load(), [], []
    total = len(request.shapes) * ROUNDS
    for number, shape in enumerate(request.shapes):
        at = lambda done, what, n=number: progress(n * ROUNDS + done, total, what)
        row, probed = _measure_shape(request, shape, at)
        rows.append(row)
        rates += probed
    spread = statistics.spread(rates)
    return {
        "target": request.target,
        "bits": request.bits,
        "threads": request.threads,
        "activations": request.activations,
        "scales": request.scales,
        "dram_bandwidth_bytes_per_second": statistics.median(rates),
        "dram_bandwidth_best": max(rates),
        "dram_bandwidth_spread": spread,
        "kernels": rows,
        "notes": statistics.notes(spread, load, request.threads),
    }


def _measure_shape(
    request: Request, shape: Shape, progress: Callable[[int, str], None]
) -> tuple[Fields, list[float]]:
    name = f"{shape[0]}x{shape[1]}"
    cold = request.cold_bytes or memory.cold_bytes()
    common: Fields = {"shape": shape, "threads": request.threads, "cold_bytes": cold}
    ours = {
        **common,
        "bits": request.bits,
        "target": request.target,
        "activations": request.activations,
        "scales": request.scales,
        "probe_bytes": request.probe_bytes or memory.probe_bytes(),
    }
    rates: dict[str, list[float]] = defaultdict(list)
    times: dict[str, list[float]] = defaultdict(list)
    progress(0, f"{name}, loading")
    with Game("kernel_bench", ours) as table:
        if request.baselines:
            table.seat(peers.kernels(request.bits), common)
        for done in range(ROUNDS):
            progress(done, f"{name}, round {done + 1} of {ROUNDS}")
            for reading, rate in table.ours().play("probe").items():
                rates[reading].append(rate)
            for player, seconds in table.round(_turn).items():
                times[player].append(seconds)
    roof = memory.roof(rates)
    row = _row(times, table, statistics.median(roof))
    return {"shape": list(shape), **row, "dram_readings": memory.readings(rates)}, roof


def _turn(player: Contender) -> float:
    player.play("call")  # wakes the threads
    return statistics.median([player.play("call") for _ in range(CALLS)])


def _row(times: dict[str, list[float]], table: Game, bandwidth: float) -> Fields:
    def entry(name: str) -> Fields:
        seconds, nbytes = statistics.median(times[name]), table.infos[name]["weight_bytes"]
        return {
            **table.infos[name],
            "microseconds": seconds * 1e6,
            "spread": statistics.spread(times[name]),
            "bytes_per_second": nbytes / seconds,
            "bandwidth_fraction": nbytes / seconds / bandwidth,
        }

    ours = entry(game.OURS)
    found = {name: entry(name) for name in table.peers()}
    for peer in found.values():
        peer["ratio"] = peer["microseconds"] / ours["microseconds"]
    return {
        **ours,
        "dram_bandwidth_bytes_per_second": bandwidth,
        "baselines": {**found, **table.absent},
    }
