"""The bench of single look-ups on a GPU: what its program measured (`cuda/timing.py`), as fields."""

from shiftadd_tvm.benchmark import memory, statistics
from shiftadd_tvm.benchmark.turns import Fields
from shiftadd_tvm.cuda import timing
from shiftadd_tvm.errors import GateError


def fields(found: Fields, activations: str) -> Fields:
    """Return the fields of `bench --kernel --json` that were measured.

    Raises `GateError` where our kernel computes other numbers than the reference.
    """
    rows = [_row(shape) for shape in found["shapes"]]
    rates = [rate for shape in found["shapes"] for rate in memory.roof(shape["rates"])]
    spread = statistics.spread(rates)
    return {
        "device": found["device"]["gpu"],
        "activations": activations,
        "scales": "separable",
        "dram_bandwidth_bytes_per_second": statistics.median(rates),
        "dram_bandwidth_best": max(rates),
        "dram_bandwidth_spread": spread,
        "kernels": rows,
        "notes": statistics.notes(spread, 0, 1),
    }


def _row(shape: Fields) -> Fields:
    bandwidth, contenders = statistics.median(memory.roof(shape["rates"])), shape["contenders"]
    if "error" in contenders[timing.OURS]:
        size = "x".join(map(str, shape["shape"]))
        raise GateError(f"The kernel of {size} failed on the GPU: {contenders[timing.OURS]['error']}.")
    entries = {name: _entry(own, bandwidth) for name, own in contenders.items()}
    ours = entries.pop(timing.OURS)
    for peer in entries.values():
        if "error" not in peer:
            peer["ratio"] = peer["microseconds"] / ours["microseconds"]
    return {
        **{"shape": shape["shape"], **ours},
        "dram_bandwidth_bytes_per_second": bandwidth,
        "dram_readings": memory.readings(shape["rates"]),
        "baselines": entries,
    }


def _entry(own: Fields, bandwidth: float) -> Fields:
    if "error" in own:
        return own
    seconds, nbytes = own["seconds"], own["weight_bytes"]
    return {
        "weight_bytes": nbytes,
        "values": own["values"],
        "microseconds": seconds * 1e6,
        "spread": own["spread"],
        "bytes_per_second": nbytes / seconds,
        "bandwidth_fraction": nbytes / seconds / bandwidth,
    }
