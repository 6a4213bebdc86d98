"""Output-error feedback against GPTQ's own recurrence, written as its paper has it."""

import numpy as np
import pytest
import torch

from shiftadd_tvm.error_feedback import DAMPING, Feedback, output_error


def moments(inputs: int, rows: int, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, inputs)) @ rng.standard_normal((inputs, inputs))
    return torch.from_numpy((x.T @ x / rows).astype(np.float32))


def reference(weights: np.ndarray, hessian: np.ndarray, step: float) -> np.ndarray:
    """Round to multiples of `step`, one input after the other: Optimal Brain Surgeon, eq. 2 of GPTQ."""
    hessian = hessian.astype(np.float64)
    hessian = hessian + DAMPING * hessian.diagonal().mean() * np.eye(len(hessian))
    open_inputs = list(np.argsort(-hessian.diagonal(), kind="stable"))
    w, result = weights.astype(np.float64), np.zeros(weights.shape)
    while open_inputs:
        inverse = np.linalg.inv(hessian[np.ix_(open_inputs, open_inputs)])
        k = open_inputs[0]
        result[:, k] = np.round(w[:, k] / step) * step
        error = (w[:, k] - result[:, k]) / inverse[0, 0]
        w[:, open_inputs[1:]] -= np.outer(error, inverse[0, 1:])
        open_inputs = open_inputs[1:]
    return result


@pytest.mark.parametrize(("outputs", "inputs"), [(1, 1), (5, 7), (3, 33), (17, 70)])
def test_equals_the_surgeon(outputs: int, inputs: int) -> None:
    hessian = moments(inputs, 3 * inputs + 5, inputs)
    weights = np.random.default_rng(1).standard_normal((outputs, inputs)).astype(np.float32)
    feedback = Feedback(hessian)
    rounded = feedback.quantize(
        torch.from_numpy(weights), lambda k, column: torch.round(column / 0.5) * 0.5
    )
    expected = reference(weights, hessian.numpy(), 0.5)
    # a value on the edge between two levels may fall to either side
    assert (np.abs(rounded.numpy() - expected) > 1e-6).mean() < 0.01


def test_feedback_lowers_the_output_error() -> None:
    hessian = moments(64, 200, 3)
    weights = torch.from_numpy(
        np.random.default_rng(3).standard_normal((32, 64)).astype(np.float32)
    )
    rounded = Feedback(hessian).quantize(weights, lambda k, column: torch.round(column))
    plain = output_error(torch.round(weights) - weights, hessian).sum()
    assert output_error(rounded - weights, hessian).sum() < 0.5 * plain


HOSTILE = {
    "no input was ever seen": torch.zeros(12, 12),
    "one input is dead": torch.diag(torch.tensor([1.0] * 11 + [0.0])),
    "all inputs are one": torch.ones(12, 12),
    "tiny": torch.eye(12) * 1e-30,
    "huge": torch.ones(12, 12) * 1e30 + torch.eye(12) * 1e24,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_moments_give_finite_weights(name: str) -> None:
    weights = torch.from_numpy(np.random.default_rng(4).standard_normal((5, 12)).astype(np.float32))
    seen = []

    def round_column(k: int, column: torch.Tensor) -> torch.Tensor:
        seen.append(column.clone())
        return column.round()

    rounded = Feedback(HOSTILE[name]).quantize(weights, round_column)
    assert rounded.isfinite().all() and torch.stack(seen).isfinite().all()
