"""Sampling: reference against compiled, and both against what the parameters promise."""

import functools

import kernels
import numpy as np
import pytest
from scipy import stats
from tvm import tirx

from shiftadd_tvm.ops import sample

VOCABULARY = 211
F32, I32, I64 = np.float32, np.int32, np.int64

needs_preset = pytest.mark.skipif(not kernels.PRESETS, reason="no preset runs on this machine")


@functools.cache
def compiled(name: str, vocabulary: int, *more: bool):
    make = {"penalize": sample.penalize, "soften": sample.soften, "draw": sample.draw}
    function: tirx.PrimFunc = (make | {"keep": sample.keep})[name](vocabulary, *more)
    return kernels.compile_tir(function)


def penalize(logits: np.ndarray, history: np.ndarray, length: list[int], penalty: list[float]):
    out = np.empty_like(logits)
    run = compiled("penalize", logits.shape[1])
    run(logits, history.astype(I32), np.array(length, I32), np.array(penalty, F32), out)
    return out


def soften(scores: np.ndarray, temperature: list[float]) -> np.ndarray:
    out = scores.copy()
    compiled("soften", scores.shape[1])(out, np.array(temperature, F32))
    return out


def keep(weights: np.ndarray, top_k: list[int], top_p: list[float]) -> np.ndarray:
    out = weights.copy()
    compiled("keep", weights.shape[1], False)(out, np.array(top_k, I32))
    compiled("keep", weights.shape[1], True)(out, np.array(top_p, F32))
    return out


def draw(weights: np.ndarray, seed: np.ndarray, step: np.ndarray) -> np.ndarray:
    out = np.empty(len(weights), I32)
    compiled("draw", weights.shape[1])(weights, seed.astype(I64), step.astype(I32), out)
    return out


def logits(rows: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, VOCABULARY)).astype(F32) * 3


def test_uniform_is_published_splitmix64() -> None:
    # the first outputs of splitmix64 for seed 1234567 (Vigna's and Rosetta Code's vectors)
    known = (6457827717110365317, 3203168211198807973, 9817491932198370423)
    for step, value in enumerate(known):
        assert sample.reference_uniform(1234567, step) == (value >> 11) * 2.0**-53


@needs_preset
def test_penalty_is_exact_and_counts_a_repeated_token_once() -> None:
    x = logits()
    history = np.random.default_rng(1).integers(0, VOCABULARY, (3, 40))
    history[0, :20] = 7
    found = penalize(x, history, [40, 0, 3], [1.3, 2.0, 0.5])
    for row, (length, penalty) in enumerate([(40, 1.3), (0, 2.0), (3, 0.5)]):
        expected = sample.reference_penalize(x[row], history[row, :length], penalty)
        np.testing.assert_array_equal(found[row], expected)
    np.testing.assert_array_equal(found[1], x[1])  # an empty history changes nothing
    assert found[0, 7] in (x[0, 7] / F32(1.3), x[0, 7] * F32(1.3))


@needs_preset
def test_soften() -> None:
    x = logits(4)
    x[3, [20, 90]] = x[3].max() + 1  # a tie: temperature 0 takes the first
    found = soften(x, [1.0, 0.3, 5.0, 0.0])
    for row, temperature in enumerate([1.0, 0.3, 5.0, 0.0]):
        expected = sample.reference_soften(x[row], temperature)
        np.testing.assert_allclose(found[row], expected, rtol=2e-6, atol=1e-37)
        assert found[row].max() == 1
    assert np.flatnonzero(found[3]).tolist() == [20]


@needs_preset
def test_soften_of_far_apart_logits_stays_finite() -> None:
    x = np.full((1, VOCABULARY), -3e38, F32)
    x[0, 5] = 3e38
    assert np.flatnonzero(soften(x, [1e-3])[0]).tolist() == [5]


# around the steps and spans of the loops, and without any whole one
SIZES = [1, sample.WIDTH - 1, sample.WIDTH, sample.SPAN, sample.SPAN + 1, 3 * sample.SPAN - 1, 2000]


@needs_preset
@pytest.mark.parametrize("size", SIZES)
def test_every_size_of_vocabulary(size: int) -> None:
    rng = np.random.default_rng(size)
    x = rng.standard_normal((4, size)).astype(F32) * 4
    history = rng.integers(0, size, (4, 9))
    found = penalize(x, history, [9] * 4, [1.2, 1.0, 0.7, 3.0])
    for row, penalty in enumerate([1.2, 1.0, 0.7, 3.0]):
        expected = sample.reference_penalize(x[row], history[row], penalty)
        np.testing.assert_array_equal(found[row], expected)
    found = soften(x, [0.0, 0.7, 1.0, 2.0])
    for row, temperature in enumerate([0.0, 0.7, 1.0, 2.0]):
        expected = sample.reference_soften(x[row], temperature)
        np.testing.assert_allclose(found[row], expected, rtol=2e-6, atol=1e-37)
    weights, limits = found.copy(), [(0, 1.0), (5, 1.0), (0, 0.6), (17, 0.9)]
    found = keep(weights, [k for k, _ in limits], [p for _, p in limits])
    for before, after, (top_k, top_p) in zip(weights, found, limits, strict=True):
        expected = sample.reference_keep(before, top_k, float(F32(top_p)))
        np.testing.assert_array_equal(after, expected)
    seeds = np.arange(40, dtype=I64)
    tiled = np.tile(found, (10, 1))
    expected = [sample.reference_draw(w, int(s), 3) for w, s in zip(tiled, seeds, strict=True)]
    np.testing.assert_array_equal(draw(tiled, seeds, np.full(40, 3)), expected)


@needs_preset
@pytest.mark.parametrize("at", [0, 1, 255, 256, 700, 1023, 1999])
def test_greedy_takes_the_first_largest_wherever_it_lies(at: int) -> None:
    x = np.full((3, 2000), -np.inf, F32)
    x[0, at], x[0, at + 1 :] = -5.0, -5.0  # tied with all that follow
    x[1] = np.nan
    x[1, at] = -1e30  # what is no number never wins
    x[2, at] = np.inf
    weights = keep(soften(x, [0.0] * 3), [0] * 3, [1.0] * 3)
    assert [np.flatnonzero(row).tolist() for row in weights] == [[at]] * 3
    drawn = draw(weights, np.arange(3), np.arange(3))
    assert drawn.tolist() == [at] * 3


@needs_preset
def test_hostile_logits_give_some_token() -> None:
    x = np.zeros((4, 2000), F32)
    x[0], x[1], x[2, 7], x[3, [1, 900]] = np.nan, -np.inf, np.nan, np.inf
    for temperature in (0.0, 1.0):
        weights = keep(soften(x, [temperature] * 4), [0, 5, 5, 5], [0.9] * 4)
        drawn = draw(weights, np.arange(4), np.arange(4))
        assert ((drawn >= 0) & (drawn < 2000)).all()


LIMITS = [  # (top_k, top_p)
    (0, 1.0),
    (1, 1.0),
    (7, 1.0),
    (VOCABULARY, 1.0),
    (10**6, 1.0),
    (0, 0.9),
    (0, 0.5),
    (0, 1e-6),
    (0, 0.0),
    (40, 0.8),
    (3, 0.999),
]


@needs_preset
@pytest.mark.parametrize("seed", range(3))
def test_keep_is_exactly_the_reference(seed: int) -> None:
    x = sample.reference_soften(logits(1, seed)[0], 1.0)
    rows = np.tile(x, (len(LIMITS), 1))
    found = keep(rows, [k for k, _ in LIMITS], [p for _, p in LIMITS])
    for row, (top_k, top_p) in zip(found, LIMITS, strict=True):
        np.testing.assert_array_equal(row, sample.reference_keep(x, top_k, float(F32(top_p))))


@needs_preset
def test_what_is_kept() -> None:
    weights = np.zeros((5, 8), F32)
    weights[:] = [0.25, 4.0, 2.0, 2.0, 2.0, 1.0, 0.0, 0.75]  # sums to 12
    found = keep(weights, [2, 0, 0, 0, 1], [1.0, 0.25, 0.34, 1e-9, 0.5])
    kept = [np.flatnonzero(row).tolist() for row in found]
    assert kept[0] == [1, 2, 3, 4]  # the second largest is tied three times: all stay
    assert kept[1] == [1]  # 4 of 12 reaches a quarter
    assert kept[2] == [1, 2, 3, 4]  # 4 of 12 does not reach 0.34, ties stay together
    assert kept[3] == [1]  # never nothing
    assert kept[4] == [1]
    np.testing.assert_array_equal(found[2], np.where(weights[2] >= 2, weights[2], 0))


@needs_preset
def test_draw_is_exactly_the_reference() -> None:
    rng = np.random.default_rng(4)
    weights = np.stack([sample.reference_soften(row, 1.0) for row in logits(64, 2)])
    weights[rng.random(weights.shape) < 0.5] = 0
    seeds = rng.integers(-(2**63), 2**63, 64, dtype=I64)
    seeds[:4] = 0, 1, -1, 2**63 - 1
    steps = rng.integers(0, 2**31 - 1, 64)
    found = draw(weights, seeds, steps)
    rows = zip(weights, seeds, steps, strict=True)
    expected = [sample.reference_draw(w, int(seed), int(step)) for w, seed, step in rows]
    np.testing.assert_array_equal(found, expected)
    assert (weights[np.arange(64), found] > 0).all()


@needs_preset
def test_draw_repeats_by_seed_and_step_and_differs_between_them() -> None:
    weights = np.ones((300, VOCABULARY), F32)
    steps = np.arange(300)
    first = draw(weights, np.full(300, 9), steps)
    np.testing.assert_array_equal(first, draw(weights, np.full(300, 9), steps))
    other = draw(weights, np.full(300, 10), steps)
    assert (first != other).mean() > 0.95 and (first[1:] != first[:-1]).mean() > 0.95


@needs_preset
def test_draws_follow_the_weights() -> None:
    weights = np.array([0.0, 5.0, 1.0, 0.0, 2.5, 0.25, 8.0, 3.0], F32)
    count = 20_000
    drawn = draw(np.tile(weights, (count, 1)), np.full(count, 42), np.arange(count))
    observed = np.bincount(drawn, minlength=8)
    present = weights > 0
    assert not observed[~present].any()
    expected = weights[present] / weights.sum(dtype=np.float64) * count
    assert stats.chisquare(observed[present], expected, sum_check=False).pvalue > 0.01
