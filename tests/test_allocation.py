"""Bits by integer programming: optimal against brute force, within the budget, a clear refusal."""

import itertools

import numpy as np
import pytest

from shiftadd_tvm.allocation import allocate, allocate_time, by_path, expected_loss
from shiftadd_tvm.errors import UsageError


def problem(seed: int, linears: int = 6) -> tuple[dict[str, dict[int, float]], dict[str, int]]:
    rng = np.random.default_rng(seed)
    names = [f"model.layers.0.mlp.l{i}" for i in range(linears)]
    sizes = {name: int(rng.integers(1, 50)) * 100 for name in names}
    costs = {}
    for name in names:
        scale = 10 ** rng.uniform(-6, 3)
        costs[name] = {bits: scale * 4.0**-bits * rng.uniform(0.7, 1.3) for bits in (1, 2, 3, 4)}
    return costs, sizes


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("average", [1.3, 2.2, 3.0, 4.0])
def test_is_the_best_of_all_choices(seed: int, average: float) -> None:
    costs, sizes = problem(seed)
    budget = average * sum(sizes.values())
    found = allocate(costs, sizes, budget)
    best = np.inf
    for choice in itertools.product((1, 2, 3, 4), repeat=len(costs)):
        bits = dict(zip(costs, choice, strict=True))
        if sum(bits[n] * sizes[n] for n in bits) <= budget:
            best = min(best, expected_loss(costs, bits))
    assert sum(found[n] * sizes[n] for n in found) <= budget * (1 + 1e-8)
    assert expected_loss(costs, found) <= best * (1 + 1e-3) + 1e-9


@pytest.mark.parametrize("seed", range(4))
def test_is_the_best_of_all_choices_within_a_time(seed: int) -> None:
    costs, sizes = problem(seed)
    times = {n: {b: sizes[n] * (b + 0.7) for b in (2, 3, 4)} for n in sizes}  # none for 1 bit
    budget = sum(times[n][3] for n in sizes) * 0.95
    found = allocate_time(costs, times, budget)
    best = np.inf
    for choice in itertools.product((2, 3, 4), repeat=len(costs)):
        bits = dict(zip(costs, choice, strict=True))
        if sum(times[n][b] for n, b in bits.items()) <= budget:
            best = min(best, expected_loss(costs, bits))
    assert sum(times[n][b] for n, b in found.items()) <= budget * (1 + 1e-8)
    assert expected_loss(costs, found) <= best * (1 + 1e-3) + 1e-9
    with pytest.raises(UsageError, match="take .* us a token at the least"):
        allocate_time(costs, times, sum(times[n][2] for n in sizes) * 0.9)


def test_no_cost_at_all() -> None:
    _, sizes = problem(0)
    bits = allocate({n: {2: 0.0, 3: 0.0} for n in sizes}, sizes, 2.5 * sum(sizes.values()))
    assert set(bits.values()) <= {2, 3}


def test_too_small_a_budget_is_refused() -> None:
    costs, sizes = problem(1)
    with pytest.raises(UsageError, match="at the least, the budget is 0.900; allow more"):
        allocate(costs, sizes, 0.9 * sum(sizes.values()))


def test_table_counts_every_linear() -> None:
    sizes = {"model.layers.0.mlp.up_proj": 100, "model.layers.1.mlp.up_proj": 300}
    bits = {"model.layers.0.mlp.up_proj": 2, "model.layers.1.mlp.up_proj": 4}
    assert by_path(bits, sizes) == [("mlp.up_proj", 3.5, [0, 1, 0, 1])]
