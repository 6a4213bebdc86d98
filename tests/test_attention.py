"""The paged cache and attention over it: compiled, reference and plain attention agree."""

import kernels
import numpy as np
import pytest

from shiftadd_tvm.ops import attend, attend_parts, attention
from shiftadd_tvm.ops.attention import PAGE
from shiftadd_tvm.ops.heads import Heads, Layout
from shiftadd_tvm.ops.scores import Scores

pytestmark = pytest.mark.skipif(not kernels.PRESETS, reason="no preset runs on this machine")

LAYERS = 2
HELD = tuple(attention.EXPONENTS)
NAN_CODE = -1  # the exponent of numbers that are none
# (heads, kv_heads, head_dim): one head, grouped queries, odd head sizes, all heads one group
HEADS = [(1, 1, 2), (4, 2, 24), (6, 6, 8), (9, 3, 10), (5, 1, 64)]


def cache(
    rng: np.random.Generator, pages: int, kv_heads: int, head_dim: int, held: str = "float32"
) -> list[np.ndarray]:
    """Return keys and values full of what other sequences left there."""
    first = (LAYERS, pages, kv_heads)
    shapes = [(*first, head_dim, PAGE), (*first, PAGE, head_dim)]
    if held == "float32":
        return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    keys, values = (rng.integers(-127, 128, shape, np.int8) for shape in shapes)
    exponents = rng.integers(57, 60, (*first, 2, PAGE), np.int8)
    return [np.concatenate([keys, exponents], axis=3), values]


def block_table(rng: np.random.Generator, sequences: int, width: int) -> np.ndarray:
    """Return pages in no order, none of them shared."""
    return rng.permutation(sequences * width).reshape(sequences, width).astype(np.int32)


@pytest.mark.parametrize("sequence", [False, True])
def test_positions(sequence: bool) -> None:
    length = np.array([30] if sequence else [0, 15, 16, 999], np.int32)
    n = 7 if sequence else 4
    found = np.full(n, -1, np.int32)
    kernels.run_tir(attention.positions(sequence), length, found)
    expected = attention.reference_positions(length, n, sequence)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found, np.arange(30, 37) if sequence else length)


@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("sequence", [False, True])
@pytest.mark.parametrize("sizes", [(2, 24), (1, 2), (3, 10)])
def test_append_writes_its_slots_and_nothing_else(
    sizes: tuple[int, int], sequence: bool, held: str
) -> None:
    kv_heads, head_dim = sizes
    rng = np.random.default_rng(0)
    length = np.array([13] if sequence else [0, 15, 16, 33], np.int32)
    n = 21 if sequence else 4
    table = block_table(rng, len(length), 3)
    new = [rng.standard_normal((n, kv_heads * head_dim)).astype(np.float32) for _ in range(2)]
    found = cache(rng, table.size, kv_heads, head_dim, held)
    expected = [array.copy() for array in found]
    function = attention.append(Layout(kv_heads, head_dim), sequence, held=held)
    kernels.run_tir(function, *found, *new, table, length, 1)
    attention.reference_append(*expected, *new, table, length, 1, sequence)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("sequence", [False, True])
def test_append_takes_values_out_of_a_stack(sequence: bool, held: str) -> None:
    rng, (kv_heads, head_dim, start) = np.random.default_rng(5), (2, 10, 7)
    length = np.array([13] if sequence else [0, 15, 16, 33], np.int32)
    n, width = 21 if sequence else 4, kv_heads * head_dim
    table = block_table(rng, len(length), 3)
    new_keys = rng.standard_normal((n, width)).astype(np.float32)
    stacked = rng.standard_normal((n, start + width + 3)).astype(np.float32)
    found = cache(rng, table.size, kv_heads, head_dim, held)
    expected = [array.copy() for array in found]
    function = attention.append(Layout(kv_heads, head_dim, start), sequence, stacked.shape[1], held)
    kernels.run_tir(function, *found, new_keys, stacked, table, length, 1)
    values = stacked[:, start : start + width]
    attention.reference_append(*expected, new_keys, values, table, length, 1, sequence)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_rounded_cache_holds_what_it_can_and_says_what_it_cannot() -> None:
    """Numbers come back within half a step of their head's power of two, as zero below the least
    exponent; infinity, NaN and what is too large make NaN of their head, and of no other."""
    rng = np.random.default_rng(8)
    new = rng.standard_normal((7, 2, 6)).astype(np.float32) * np.float32(10.0) ** np.arange(
        -3, 4, dtype=np.float32
    ).reshape(7, 1, 1)
    new[1] = 0.0
    new[2, 0], new[3, 0, 4], new[4, 0, 1], new[5, 0, 2] = 1e-30, np.inf, np.nan, -1e30
    keys, values = cache(rng, 1, 2, 6, "int8")
    table, length = np.zeros((1, 1), np.int32), np.zeros(1, np.int32)
    flat = new.reshape(7, -1)
    function = attention.append(Layout(2, 6), True, held="int8")
    kernels.run_tir(function, keys, values, flat, flat[::-1].copy(), table, length, 0)
    held_keys, held_values = attention.reference_held(keys, values)
    found = held_keys[0, 0, :, :, :7].transpose(2, 0, 1)
    np.testing.assert_array_equal(found, held_values[0, 0, :, :7].transpose(1, 0, 2)[::-1])
    lost = [(position, 0) for position in (3, 4, 5)]
    for at in np.ndindex(7, 2):
        if at in lost:
            assert np.isnan(found[at]).all()
        else:
            step = 2.0 ** (np.floor(np.log2(max(np.abs(new[at]).max(), 2.0**-57))) - 6)
            np.testing.assert_allclose(found[at], new[at], rtol=0, atol=step)


@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("sequence", [False, True])
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_attend_equals_reference(heads: tuple[int, int, int], sequence: bool, held: str) -> None:
    queries_heads, kv_heads, head_dim = heads
    rng = np.random.default_rng(1)
    length = np.array([13] if sequence else [0, 15, 16, 47], np.int32)
    n = 35 if sequence else 4
    table = block_table(rng, len(length), 3)
    keys, values = cache(rng, table.size, kv_heads, head_dim, held)
    queries = rng.standard_normal((n, queries_heads * head_dim)).astype(np.float32) * 3
    found = np.empty_like(queries)
    function = attend.attend(queries_heads, kv_heads, head_dim, sequence, held=held)
    kernels.run_tir(function, queries, keys, values, table, length, 1, found)
    expected = attend.reference_attend(queries, keys, values, table, length, 1, sequence)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


RULES = {
    "window of a page and more": Scores(0.3, window=21),
    "window of a position": Scores(0.3, window=1),
    "soft cap": Scores(0.5, cap=4.0),
    "ALiBi": Scores(0.3, alibi=True),
    "everything": Scores(0.2, window=40, cap=9.0, alibi=True),
}


@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("sequence", [False, True])
@pytest.mark.parametrize("name", RULES)
def test_attend_by_other_rules(name: str, sequence: bool, held: str) -> None:
    heads, kv_heads, head_dim = 6, 3, 10  # ALiBi's slopes of heads beyond a power of two
    rng, rules = np.random.default_rng(1), RULES[name]
    length = np.array([110] if sequence else [0, 15, 16, 47, 150], np.int32)
    n = 50 if sequence else 5
    table = block_table(rng, len(length), 10)
    keys, values = cache(rng, table.size, kv_heads, head_dim, held)
    queries = rng.standard_normal((n, heads * head_dim)).astype(np.float32) * 3
    found = np.empty_like(queries)
    function = attend.attend(heads, kv_heads, head_dim, sequence, rules, held)
    kernels.run_tir(function, queries, keys, values, table, length, 1, found)
    expected = attend.reference_attend(queries, keys, values, table, length, 1, sequence, rules)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


def test_attend_ignores_what_lies_past_each_token() -> None:
    rng = np.random.default_rng(2)
    table, length = block_table(rng, 1, 2), np.array([16], np.int32)
    keys, values = cache(rng, 2, 1, 8)
    queries, found = rng.standard_normal((1, 8)).astype(np.float32), np.empty((1, 8), np.float32)
    run = kernels.compile_tir(attend.attend(1, 1, 8, False))
    run(queries, keys, values, table, length, 0, found)
    last = table[0, 1]
    keys[:, last, :, :, 1:], values[:, last, :, 1:] = 1e9, 1e9  # position 16 is the page's first
    again = np.empty_like(found)
    run(queries, keys, values, table, length, 0, again)
    np.testing.assert_array_equal(found, again)


# (tokens, length): inside a unit of prefill, at its edges, several units, several runs of pages
CHUNKS = [(1, 0), (1, 63), (15, 0), (16, 64), (17, 1), (33, 127), (70, 250)]


@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("heads", [(4, 4, 8), (6, 2, 16), (7, 1, 80)], ids=str)
def test_prefill_of_any_chunk(heads: tuple[int, int, int], held: str) -> None:
    queries_heads, kv_heads, head_dim = heads
    rng = np.random.default_rng(5)
    run = kernels.compile_tir(attend.attend(queries_heads, kv_heads, head_dim, True, held=held))
    table = block_table(rng, 1, 20)
    for tokens, start in CHUNKS:
        keys, values = cache(rng, table.size, kv_heads, head_dim, held)
        fill_with_nan(keys, values, table[0], start + tokens)
        length = np.array([start], np.int32)
        queries = rng.standard_normal((tokens, queries_heads * head_dim)).astype(np.float32) * 3
        found = np.full_like(queries, np.nan)
        run(queries, keys, values, table, length, 1, found)
        keys, values = np.nan_to_num(keys), np.nan_to_num(values)
        expected = attend.reference_attend(queries, keys, values, table, length, 1, True)
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("heads", [(4, 4, 8), (6, 2, 16), (70, 70, 2), (7, 1, 80)], ids=str)
def test_decode_of_sequences_of_every_length(heads: tuple[int, int, int], held: str) -> None:
    # one beside thousands of positions: units without any, units of several runs
    queries_heads, kv_heads, head_dim = heads
    rng = np.random.default_rng(6)
    run = kernels.compile_tir(attend.attend(queries_heads, kv_heads, head_dim, False, held=held))
    for lengths in ([0], [31], [32], [2999], [0, 1500], [700, 3, 64, 1023]):
        table = block_table(rng, len(lengths), max(lengths) // PAGE + 1)
        keys, values = cache(rng, table.size, kv_heads, head_dim, held)
        for row, length in zip(table, lengths, strict=True):
            fill_with_nan(keys, values, row, length + 1)
        shape = (len(lengths), queries_heads * head_dim)
        queries = rng.standard_normal(shape).astype(np.float32) * 3
        found, length = np.full_like(queries, np.nan), np.array(lengths, np.int32)
        run(queries, keys, values, table, length, 1, found)
        keys, values = np.nan_to_num(keys), np.nan_to_num(values)
        expected = attend.reference_attend(queries, keys, values, table, length, 1, False)
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


def fill_with_nan(keys: np.ndarray, values: np.ndarray, row: np.ndarray, end: int) -> None:
    """Make everything from position `end` of a sequence on no number: it must not be used."""
    page, slot = divmod(end, PAGE)
    if keys.dtype == np.int8:
        codes = keys[:, :, :, -2:]
        codes[:, row[page : page + 1], ..., slot:], codes[:, row[page + 1 :]] = NAN_CODE, NAN_CODE
        return
    if slot:
        keys[:, row[page], :, :, slot:], values[:, row[page], :, slot:] = np.nan, np.nan
        page += 1
    keys[:, row[page:]], values[:, row[page:]] = np.nan, np.nan


@pytest.mark.parametrize("held", HELD)
def test_a_later_token_that_is_no_number_changes_no_earlier_one(held: str) -> None:
    rng = np.random.default_rng(7)
    table, length = block_table(rng, 1, 3), np.array([0], np.int32)
    keys, values = cache(rng, 3, 2, 8, held)
    queries = rng.standard_normal((40, 32)).astype(np.float32)
    run = kernels.compile_tir(attend.attend(4, 2, 8, True, held=held))
    found, again = np.empty_like(queries), np.empty_like(queries)
    run(queries, keys, values, table, length, 0, found)
    if held == "int8":  # position 21
        keys[0, table[0, 1], :, -2:, 5] = NAN_CODE
    else:
        keys[0, table[0, 1], :, :, 5], values[0, table[0, 1], :, 5] = np.nan, np.inf
    run(queries, keys, values, table, length, 0, again)
    np.testing.assert_array_equal(found[:21], again[:21])
    assert not np.isfinite(again[21:]).any()


def test_attend_of_huge_scores_stays_finite() -> None:
    # a softmax without its running maximum would overflow
    rng = np.random.default_rng(3)
    table, length = np.array([[0, 1]], np.int32), np.array([20], np.int32)
    keys, values = cache(rng, 2, 1, 4)
    keys *= 1e4
    queries, found = np.full((1, 4), 1e4, np.float32), np.empty((1, 4), np.float32)
    run = kernels.compile_tir(attend.attend(1, 1, 4, False))
    run(queries, keys, values, table, length, 0, found)
    expected = attend.reference_attend(queries, keys, values, table, length, 0, False)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_reference_is_plain_causal_attention() -> None:
    rng, (heads, kv_heads, size, n) = np.random.default_rng(4), (4, 2, 6, 20)
    q, k, v = (
        rng.standard_normal((n, count, size)).astype(np.float32)
        for count in (heads, kv_heads, kv_heads)
    )
    table, length = block_table(rng, 1, 2), np.array([0], np.int32)
    keys, values = cache(rng, 2, kv_heads, size)
    attention.reference_append(
        keys, values, k.reshape(n, -1), v.reshape(n, -1), table, length, 0, True
    )
    found = attend.reference_attend(q.reshape(n, -1), keys, values, table, length, 0, True)
    k, v = np.repeat(k, heads // kv_heads, 1), np.repeat(v, heads // kv_heads, 1)
    scores = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(size)
    scores[:, np.triu(np.ones((n, n), bool), 1)] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = np.einsum("hij,jhd->ihd", weights / weights.sum(-1, keepdims=True), v)
    np.testing.assert_allclose(found, expected.reshape(n, -1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("angles", "epsilon"), [(0, None), (5, 1e-5), (12, None)])
def test_attention_in_parts_by_its_definition(angles: int, epsilon: float | None) -> None:
    """Only GPUs have a schedule of it (`test_cuda_kernels.py`); what it means is the same everywhere."""
    rng, (heads, kv_heads, size) = np.random.default_rng(9), (4, 2, 24)
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    stack = (Layout(heads, size), Layout(kv_heads, size, 96), Layout(kv_heads, size, 144))
    of = Heads(*stack, (192, 192, 192), angles, epsilon)
    length = np.array([0, 16, 33, 180], np.int32)
    table = block_table(rng, len(length), 12)
    found = cache(rng, table.size, kv_heads, size)
    expected = [array.copy() for array in found]
    x, norms = normal(4, 192), (normal(size), normal(size)) if epsilon else None
    turn = normal(4, 2, angles) if angles else None
    rules = Scores(size**-0.5, window=100)
    rest = (table, length, 1)
    parts = attend_parts.reference_attend_parts(*expected, (x, x, x), norms, turn, *rest, of, rules)
    results = [np.full_like(array, np.nan) for array in parts]
    given = [x, x, x, *(norms or ()), *([turn] if angles else []), *rest]
    kernels.run_tir(attend_parts.attend_parts(of, rules), *found, *given, *results)
    for a, b in zip([*found, *results], [*expected, *parts], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
