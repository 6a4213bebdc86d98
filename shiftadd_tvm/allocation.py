"""How many bits each linear gets: the least loss within a budget, as a linear program.

The loss of a linear at b bits is the divergence of the next token that it brings alone, measured at one
width (`sensitivity.py`), times the ratio of its output errors at b bits and at that width. One variable
says whether a linear has b bits; sizes weigh the budget; SciPy's HiGHS solves it to optimality.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import optimize, sparse

from shiftadd_tvm.errors import UsageError

Costs = Mapping[str, Mapping[int, float]]  # linear -> bits -> expected loss

_SECONDS = 60.0  # after which the best found so far counts
_GAP = 1e-4  # of the optimum: closer is below what the costs are known to


def allocate(costs: Costs, sizes: Mapping[str, int], budget: float) -> dict[str, int]:
    """Return the bits of each linear, of those that `costs` knows, whose sum over all weights is at
    most `budget` (in bits) at the least total cost.

    `sizes` are the weights of each linear. Raises `UsageError` where even the fewest bits are more.
    """
    least = sum(min(costs[linear]) * sizes[linear] for linear in costs)
    if least > budget * (1 + 1e-9):
        raise UsageError(
            f"The bits of the linears can be {least / sum(sizes.values()):.3f} on average at the "
            f"least, the budget is {budget / sum(sizes.values()):.3f}; allow more."
        )
    return _choose(costs, {n: {b: b * sizes[n] for b in by_bits} for n, by_bits in costs.items()}, budget)


def allocate_time(costs: Costs, microseconds: Costs, budget: float) -> dict[str, int]:
    """Return the bits of each linear whose `microseconds` together are at most `budget`, at the least
    total cost; only bits whose time is known. Raises `UsageError` where even the fastest take longer."""
    known = {
        linear: {b: cost for b, cost in by_bits.items() if b in microseconds[linear]}
        for linear, by_bits in costs.items()
    }
    least = sum(min(microseconds[linear][b] for b in known[linear]) for linear in known)
    if least > budget * (1 + 1e-9):
        raise UsageError(
            f"The linears take {least:.0f} us a token at the least, the budget is {budget:.0f} us; "
            "allow more."
        )
    return _choose(known, microseconds, budget)


def _choose(costs: Costs, amounts: Costs, budget: float) -> dict[str, int]:
    linears = list(costs)
    choices = [(row, bits) for row, linear in enumerate(linears) for bits in sorted(costs[linear])]
    rows = np.array([row for row, _ in choices])
    weight = np.array([amounts[linears[row]][bits] for row, bits in choices], float)
    cost = np.array([costs[linears[row]][bits] for row, bits in choices])
    one_each = sparse.csr_array((np.ones(len(rows)), (rows, np.arange(len(rows)))))
    found = optimize.milp(
        cost / cost.max() if cost.max() > 0 else cost,
        constraints=[
            optimize.LinearConstraint(one_each, 1, 1),
            optimize.LinearConstraint(weight[None] / budget, ub=1 + 1e-9),
        ],
        integrality=np.ones(len(rows)),
        bounds=optimize.Bounds(0, 1),
        options={"time_limit": _SECONDS, "mip_rel_gap": _GAP},
    )
    assert found.x is not None, found.message
    chosen = [choice for choice, taken in zip(choices, found.x, strict=True) if taken > 0.5]
    return {linears[row]: bits for row, bits in chosen}


def expected_loss(costs: Costs, bits: Mapping[str, int]) -> float:
    """Return the sum of the costs of a choice."""
    return sum(costs[linear][count] for linear, count in bits.items())


def by_path(
    bits: Mapping[str, int], sizes: Mapping[str, int]
) -> list[tuple[str, float, list[int]]]:
    """Return (path inside a block, average bits, linears with 1, 2, 3, 4 bits): what was chosen."""
    groups: dict[str, list[str]] = {}
    for linear in bits:
        groups.setdefault(".".join(linear.split(".")[-2:]), []).append(linear)
    rows = []
    for path, members in groups.items():
        average = sum(bits[m] * sizes[m] for m in members) / sum(sizes[m] for m in members)
        counts: Sequence[int] = [sum(bits[m] == b for m in members) for b in range(1, 5)]
        rows.append((path, average, list(counts)))
    return rows
