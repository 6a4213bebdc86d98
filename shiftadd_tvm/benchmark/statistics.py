"""Times of many rounds to a few numbers: medians, their spread, and whether the machine was quiet."""

import os
import statistics
from collections.abc import Sequence

NOISY_SPREAD = 0.10  # of the memory probe: quiet machines stay below a few percent
NOISY_LOAD = 0.5  # processes that ran before we began


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def spread(values: Sequence[float]) -> float:
    """Return the distance of the quartiles as a fraction of the median (0 for one value)."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / statistics.median(values)


def load() -> float:
    """Return how many processes ran on average in the last minute."""
    return os.getloadavg()[0]


def notes(probe_spread: float, load_before: float, threads: int) -> list[str]:
    """Return a sentence for each sign that the machine was not ours alone."""
    found = []
    if probe_spread > NOISY_SPREAD:
        found.append(
            f"the machine was noisy: half of the memory probes lie {probe_spread:.0%} apart "
            f"(quiet: below {NOISY_SPREAD:.0%}); ratios hold better than times"
        )
    if load_before > NOISY_LOAD:
        found.append(f"other processes kept {load_before:.1f} processors busy before the bench")
    if found and threads > 1:
        found.append(
            f"with {threads} threads and a busy machine not even ratios hold: a library whose threads "
            "wait for each other loses most"
        )
    return found
