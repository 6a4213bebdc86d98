"""The picture of `make accuracy`: the gap in perplexity over effective bits, one line a method.

Filled: what is stored runs without a multiply by a weight or a scale. Hollow: it does not.
"""

import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from shiftadd_tvm.accuracy.rows import Row

OURS, FREE, PEERS = "#2a7f62", "#d1495b", "#6b7280"
MARKERS = "osD^vPX<>ph*"


def draw(rows: list[Row], path: Path) -> None:
    """Write the picture of the rows whose gap is a positive number."""
    shown = [row for row in rows if math.isfinite(row.gap) and row.gap > 0]
    figure, axis = plt.subplots(figsize=(8.6, 5.2))
    for place, name in enumerate(dict.fromkeys(row.method for row in shown)):
        points = sorted((r for r in shown if r.method == name), key=lambda r: r.effective_bits)
        line(axis, points, MARKERS[place % len(MARKERS)])
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("effective bits of a weight: codes and all scales")
    axis.set_ylabel("gap: ln(perplexity / reference perplexity)")
    axis.grid(True, which="both", color="#e5e7eb", lw=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    if shown:
        title = "filled: free of multiplies by weights and scales"
        axis.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, title=title)
    figure.savefig(path, dpi=130, bbox_inches="tight")
    plt.close(figure)


def line(axis: Axes, points: list[Row], marker: str) -> None:
    """Draw one method."""
    free, ours = points[0].multiplication_free, points[0].method == "shiftadd-tvm"
    colour = OURS if ours else FREE if free else PEERS
    axis.plot(
        [point.effective_bits for point in points],
        [point.gap for point in points],
        marker=marker,
        color=colour,
        markerfacecolor=colour if free else "white",
        lw=2.2 if ours else 1.0,
        label=points[0].method,
        zorder=3 if ours else 2,
    )
