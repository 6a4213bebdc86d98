"""Coordinate descent against its definition: each column in turn at the least output error."""

import numpy as np
import pytest
import torch
from test_error_feedback import HOSTILE, moments

from shiftadd_tvm.coordinate_descent import DAMPING, sweep
from shiftadd_tvm.error_feedback import Feedback, output_error

STEP = 0.5


def round_column(k: int, column: torch.Tensor) -> torch.Tensor:
    return torch.round(column / STEP) * STEP


def draw(outputs: int, inputs: int, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.standard_normal((outputs, inputs)).astype(np.float32))


def damped(hessian: torch.Tensor) -> torch.Tensor:
    return hessian + DAMPING * hessian.diagonal().mean() * torch.eye(len(hessian))


def reference(
    weights: np.ndarray, coded: np.ndarray, hessian: np.ndarray, order: list[int]
) -> np.ndarray:
    """Try the two nearest multiples of STEP at every weight, keep the one of the lesser error."""
    result = coded.astype(np.float64)
    for k in order:
        for n in range(len(weights)):
            without = weights[n].astype(np.float64) - result[n]
            without[k] = weights[n, k]
            middle = without @ hessian[k] / hessian[k, k]
            tries = np.array([np.floor(middle / STEP), np.ceil(middle / STEP)]) * STEP
            errors = []
            for value in tries:
                left = without.copy()
                left[k] -= value
                errors.append(left @ hessian @ left)
            result[n, k] = tries[int(np.argmin(errors))]
    return result


@pytest.mark.parametrize(("outputs", "inputs"), [(1, 1), (5, 7), (3, 33), (4, 70)])
def test_equals_the_definition(outputs: int, inputs: int) -> None:
    hessian, weights = moments(inputs, 3 * inputs + 5, inputs), draw(outputs, inputs, 1)
    order = torch.randperm(inputs, generator=torch.Generator().manual_seed(2))
    coded = round_column(0, weights)
    found = sweep(weights, coded, hessian, order, round_column)
    exact = damped(hessian).double().numpy()
    expected = reference(weights.numpy(), coded.numpy(), exact, order.tolist())
    # a value on the edge between two levels may fall to either side
    assert (np.abs(found.numpy() - expected) > 1e-6).mean() < 0.01


@pytest.mark.parametrize(("outputs", "inputs"), [(9, 31), (16, 64), (8, 100)])
def test_sweeps_better_the_feedback(outputs: int, inputs: int) -> None:
    hessian, weights = moments(inputs, 3 * inputs, inputs), draw(outputs, inputs, 3)
    feedback = Feedback(hessian)
    coded = feedback.quantize(weights, round_column)
    errors = [output_error(coded - weights, damped(hessian))]
    for _ in range(3):
        coded = sweep(weights, coded, hessian, feedback.order, round_column)
        errors.append(output_error(coded - weights, damped(hessian)))
    for before, after in zip(errors, errors[1:], strict=False):
        assert (after <= before * 1.0001 + 1e-6).all()  # row by row
    assert errors[-1].sum() < errors[0].sum()


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_moments_give_finite_weights(name: str) -> None:
    weights = draw(5, 12, 4)
    clipped = lambda k, column: column.round().clamp(-2, 2)
    found = sweep(weights, clipped(0, weights), HOSTILE[name], torch.arange(12), clipped)
    assert found.isfinite().all()


def test_an_input_that_is_always_zero_keeps_its_codes() -> None:
    hessian, weights = moments(20, 60, 5), draw(6, 20, 6)
    hessian[7] = hessian[:, 7] = 0
    coded = round_column(0, weights)
    found = sweep(weights, coded, hessian, torch.arange(20), round_column)
    assert torch.equal(found[:, 7], coded[:, 7])
