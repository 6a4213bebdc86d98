"""The picture of `make bench`: bars of time, and on each the time that memory alone would take."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

Fields = dict[str, Any]
Bar = tuple[
    str, float, float
]  # name, time, time that reading its bytes takes at the roof (0: none)

OURS, PEER, ROOF = "#2a7f62", "#b9bec7", "#d1495b"
CLIP = 1.6  # a bar longer than so many times the second longest is cut off
ROW = 0.26  # inches of a bar


def draw(results: Fields, path: Path) -> None:
    """Write the picture of `bench.json`'s content: a column for each count of bits."""
    rows = [(title, bars) for title, bars in panels(results) if bars]
    columns = max(len(results["kernels"]), len(results["models"]), 1)
    lines = [rows[start : start + columns] for start in range(0, len(rows), columns)]
    heights = [max(len(bars) for _, bars in line) + 2.2 for line in lines]
    size = (4.6 * columns, ROW * sum(heights) + 0.9)
    figure, axes = plt.subplots(
        len(lines), columns, figsize=size, squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    for line, panel_axes in zip(lines, axes, strict=True):
        for axis in panel_axes[len(line) :]:
            axis.axis("off")
        for (title, bars), axis in zip(line, panel_axes, strict=False):
            panel(axis, title, bars)
    handles = [
        plt.Rectangle((0, 0), 1, 1, color=OURS, label="shiftadd-tvm"),
        plt.Rectangle((0, 0), 1, 1, color=PEER, label="peers"),
        plt.Line2D([], [], color=ROOF, lw=2, label="roof: reading the same bytes from memory"),
    ]
    figure.legend(handles=handles, loc="upper center", ncols=3, frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.35 / size[1]))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def panels(results: Fields) -> list[tuple[str, list[Bar]]]:
    """Return title and bars of every panel: operators shape by shape, then decode, then prefill."""
    found = []
    for shape in range(max((len(f["kernels"]) for f in results["kernels"]), default=0)):
        for fields in results["kernels"]:
            kernel = fields["kernels"][shape]
            outputs, inputs = kernel["shape"]
            title = f"{outputs} × {inputs}, {fields['bits']} bits, µs"
            found.append((title, kernel_bars(kernel)))
    for key in ("decode", "prefill"):
        for fields in results["models"]:
            title = f"{Path(fields['model']).name}, {fields['bits']:g} bits, {key}, ms a token"
            found.append((title, model_bars(fields, key)))
    return found


def kernel_bars(kernel: Fields) -> list[Bar]:
    """Return the bars of one operator."""
    entries = {"ours": kernel, **present(kernel["baselines"])}
    roof = kernel["dram_bandwidth_bytes_per_second"] / 1e6
    return [(n, e["microseconds"], e["weight_bytes"] / roof) for n, e in entries.items()]


def model_bars(fields: Fields, key: str) -> list[Bar]:
    """Return the bars of one model; prefill has no roof in memory."""
    entries = {"ours": fields, **present(fields["baselines"])}
    roof = fields["dram_bandwidth_bytes_per_second"] / 1e3
    bars = []
    for name, entry in entries.items():
        read = entry["weight_bytes"] / roof if key == "decode" else 0.0
        bars.append((name, 1e3 / entry[f"{key}_tokens_per_second"], read))
    return bars


def present(baselines: Fields) -> Fields:
    """Return the peers that were measured."""
    return {name: peer for name, peer in baselines.items() if "error" not in peer}


def panel(axis: Axes, title: str, bars: list[Bar]) -> None:
    """Draw one panel; the longest bar is cut off where it would make the others unreadable."""
    times = sorted(time for _, time, _ in bars)
    limit = times[-1]
    if len(times) > 1 and limit > CLIP * times[-2]:
        limit = times[-2] * CLIP
    for place, (name, time, read) in enumerate(bars):
        colour = OURS if name == "ours" else PEER
        axis.barh(place, min(time, limit), color=colour, height=0.72)
        if 0 < read <= limit:
            axis.plot([read, read], [place - 0.36, place + 0.36], color=ROOF, lw=2)
        shown = f"{time:.0f}" if time >= 100 else f"{time:.1f}"
        text = f"{shown} →" if time > limit else shown  # an arrow: the bar is cut off
        axis.text(min(time, limit) + limit * 0.015, place, text, va="center", fontsize=8)
    axis.set_yticks(range(len(bars)), [name for name, _, _ in bars], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(0, limit * 1.2)
    axis.set_title(title, fontsize=9, loc="left")
    axis.tick_params(axis="x", labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
