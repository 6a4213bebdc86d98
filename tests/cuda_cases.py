"""Run in a child whose driver is the emulated one: operators scheduled for CUDA against their references.

    python cuda_cases.py GROUP FOLDER [NUMBER]

prints the names of the cases of a group as JSON, each with what differs from its reference ("" if
nothing does). Look-ups must be equal; the rest may round differently, by `CLOSE` of the largest number.
"""

import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import kernels
import numpy as np
import tvm
import tvm_ffi
from cuda_chains import chains
from cuda_emulation import Emulator
from tvm import te, tirx
from tvm.ir import IRModule

from shiftadd_tvm import backend, bcq, pipeline
from shiftadd_tvm.ops import (
    OP,
    activation,
    attend,
    attend_parts,
    attention,
    dense,
    elementwise,
    experts,
    gemm,
    gemm_half,
    hadamard,
    heads,
    lut,
    lut_bits,
    lut_bits_group,
    lut_bytes,
    lut_group,
    lutgemm,
    place,
    sample,
    shift,
    words,
)
from shiftadd_tvm.ops import planes as order
from shiftadd_tvm.ops.scores import Scores
from shiftadd_tvm.tensorfile import from_float32

TARGET = backend.load(f"cuda-sm{os.environ.get('SHIFTADD_EMULATED_ARCH', 90)}")
CLOSE = 2e-6
# numbers and weights of 11 bits; what is relative to a score of a hundred, far away by ALiBi
WIDER = {"gemm_half": 1e-3, "attend_parts": 1e-5}
BATCH = 25  # operators that are compiled together
Array = np.ndarray
Result = Array | list[Array]


class Case:
    """One operator, what it is given and must give, and what its first operands must be after it."""

    def __init__(
        self,
        name: str,
        function: Any,
        given: list[Any],
        outputs: list[Array],
        after: Sequence[Array] = (),
    ) -> None:
        self.name, self.given, self.expected = name, given, [*outputs, *after]
        self.outputs, self.after = len(outputs), len(after)
        self.function, self.exact = function, name.startswith(("lut_", "produce", "half_"))

    def difference(self, run: Callable[..., None]) -> str:
        """Return what differs from the references, in words."""
        device = tvm.cuda(0)
        arrays = [tvm.runtime.tensor(v, device) if isinstance(v, Array) else v for v in self.given]
        outputs = self.expected[: self.outputs]
        results = [tvm.runtime.tensor(garbage(v), device) for v in outputs]
        run(*arrays, *results)
        results += arrays[: self.after]
        for at, (found, expected) in enumerate(zip(results, self.expected, strict=True)):
            peak = float(np.nanmax(np.abs(expected), initial=0))
            room = 0 if self.exact else WIDER.get(self.name, CLOSE) * peak
            close = np.allclose(found.numpy(), expected, rtol=0, atol=room, equal_nan=True)
            if not close:
                return f"result {at} differs"
        return ""


def garbage(like: Array) -> Array:
    return np.full(like.nbytes, 0xA5, np.uint8).view(like.dtype).reshape(like.shape)


def te_case(
    name: str,
    function: Callable[..., Any],
    given: list[Array],
    expected: Result,
    rows: tuple[int, ...] = (),
) -> Case:
    results = expected if isinstance(expected, list) else [expected]
    return Case(name, kernels.op_function(name, function, given, rows), given, results)


def terms(rng: np.random.Generator, *shape: int) -> Array:
    found = rng.integers(58, 70, shape) | rng.integers(0, 2, shape) << 7
    return np.where(rng.random(shape) < 0.2, 0, found).astype(np.uint8)


def lookup(rng: np.random.Generator, form: lut_bits.Format) -> Iterator[Case]:
    """Yield a drawn query of one token or several, and now and then what builds its operand."""
    many = [8, 11, 32] if form.read == "bytes" else [1, 8]
    tokens, outputs = int(rng.choice([1, 2, 4, *many])), int(rng.integers(1, 140))
    inputs, count = int(rng.integers(1, 1400)), int(rng.integers(1, 5))
    x = (rng.standard_normal((tokens, inputs)) * 10.0 ** rng.integers(-9, 9)).astype(np.float32)
    if rng.random() < 0.1:
        x[0, 0] = rng.choice([np.inf, np.nan, 1e-42])
    planes = bcq.pack_planes(rng.random((count, outputs, inputs)) < 0.5)
    plane_terms, row_terms = terms(rng, count, 2), terms(rng, outputs, int(rng.integers(1, 4)))
    bias = [rng.standard_normal(outputs).astype(np.float32)] if rng.random() < 0.3 else []
    levels = np.repeat(plane_terms[None], order.row_blocks(outputs, words.ROWS), axis=0)
    operands = [levels, order.pack_row_terms(row_terms, words.ROWS), *bias]
    read = lut_bytes.read(form, tokens)
    build, function, reference = lut_bytes.OPERATORS[read]
    built = [*reference(x, form)]
    query = lambda *v: function(*v[:5], outputs, form, *v[5:])
    expected = lut_bits.reference_query(x, planes, plane_terms, row_terms, form, *bias)
    given = [*built, words.pack(planes, form.order), *operands]
    if rng.random() < 0.15:
        yield te_case(f"lut_{read}_build", lambda v: build(v, form), [x], built)
    yield te_case(f"lut_{read}_query", query, given, expected)


def lookups(number: int) -> Iterator[Case]:
    """Yield that many drawn queries."""
    rng = np.random.default_rng(7)
    forms = list(lut_bits.FORMATS.values())
    for index in range(number):
        yield from lookup(rng, forms[index % len(forms)])


def shared_tables(number: int) -> Iterator[Case]:
    """Yield drawn look-ups of the baseline, whose tables are in shared memory."""
    rng = np.random.default_rng(21)
    for index in range(number):
        tokens, outputs = 1 + index % 2, int(rng.integers(1, 1200))
        inputs, count = int(rng.integers(1, 1400)), 1 + index % 4
        x = rng.standard_normal((tokens, inputs)).astype(np.float32)
        planes = bcq.pack_planes(rng.random((count, outputs, inputs)) < 0.5)
        plane_terms, row_terms = terms(rng, count, 2), terms(rng, outputs, 2)
        levels = np.repeat(plane_terms[None], order.row_blocks(outputs, words.ROWS), axis=0)
        packed = words.pack(planes, lutgemm.ORDER)
        given = [x, packed, levels, order.pack_row_terms(row_terms, words.ROWS)]
        expected = lutgemm.reference_query(x, planes, plane_terms, row_terms)
        query = lambda *v, n=outputs: lutgemm.query(*v, n)
        yield te_case("lutgemm", query, given, expected)


def group(rng: np.random.Generator, form: lut_bits.Format, columns: int) -> Iterator[Case]:
    """Yield a drawn query whose scales one row and a group of inputs have alone, and what builds it."""
    tokens, outputs = int(rng.choice([1, 1, 2, 4, 8, 32])), int(rng.integers(1, 100))
    inputs, count = int(rng.integers(1, 5000 if tokens < 8 else 700)), int(rng.integers(1, 5))
    x = (rng.standard_normal((tokens, inputs)) * 10.0 ** rng.integers(-9, 9)).astype(np.float32)
    if rng.random() < 0.2:
        x[0, 0] = rng.choice([np.inf, np.nan, 1e-42])
    planes = bcq.pack_planes(rng.random((count, outputs, inputs)) < 0.5)
    codes = terms(rng, count, outputs, -(-inputs // columns), int(rng.integers(1, 4)))
    bias = [rng.standard_normal(outputs).astype(np.float32)] if rng.random() < 0.3 else []
    built = [*lut_bits_group.reference_build(x, form, columns)]
    packed = [words.pack(planes, form.order), lut_group.pack_terms(codes, words.ROWS)]
    query = lambda *v: lut_bits_group.query(*v[:4], outputs, columns, form, *v[4:])
    expected = lut_bits_group.reference_query(x, planes, codes, columns, form, *bias)
    yield te_case("lut_bits_group", query, [*built, *packed, *bias], expected)
    if rng.random() < 0.3:
        build = lambda v: lut_bits_group.build(v, form, columns)
        yield te_case("lut_bits_group_build", build, [x], built)


def groups(number: int) -> Iterator[Case]:
    """Yield that many drawn queries with groups."""
    rng = np.random.default_rng(11)
    forms = [form for form in lut_bits.FORMATS.values() if form.read == "bits"]
    for index in range(number):
        columns = lut_bits_group.COLUMNS[index // len(forms) % len(lut_bits_group.COLUMNS)]
        yield from group(rng, forms[index % len(forms)], columns)


def hostile(number: int) -> Iterator[Case]:
    """Yield queries whose sums are the largest that there are."""
    for form in lut_bits.FORMATS.values():
        for sign in (1, -1):
            x = np.full((1, 4096), sign * 3.0e5, np.float32)
            planes = bcq.pack_planes(np.ones((2, 33, 4096), bool))
            one = np.full((33, 1), 64, np.uint8)
            _, function, reference = lut_bytes.OPERATORS[form.read]
            levels = np.full((2, 2, 1), 64, np.uint8)
            packed = [words.pack(planes, form.order), levels, order.pack_row_terms(one, words.ROWS)]
            expected = lut_bits.reference_query(x, planes, one[:2], one, form)
            query = lambda *v, f=function, form=form: f(*v, 33, form)
            given = [*reference(x, form), *packed]
            yield te_case(f"lut_{form.read}_query", query, given, expected)


LARGE = (("fixed16", 1), ("fixed16", 4), ("fixed24", 1), ("shuffle16", 1))
LARGE_BYTES = (("bytes16", 1), ("bytes16", 4), ("fixed16", 8), ("fixed16", 32), ("fixed24", 16))


def large(number: int) -> Iterator[Case]:
    """Yield queries of a size that models have, whose machine code is looked at; few rows."""
    yield from _large(LARGE)


def large_bytes(number: int) -> Iterator[Case]:
    """Yield those of several tokens, which multiply bytes."""
    yield from _large(LARGE_BYTES)


def _large(chosen: Sequence[tuple[str, int]]) -> Iterator[Case]:
    for name, tokens in chosen:
        form = lut_bits.FORMATS[name]
        read = lut_bytes.read(form, tokens)
        _, function, reference = lut_bytes.OPERATORS[read]
        x = np.ones((tokens, 4096), np.float32)
        planes = bcq.pack_planes(np.ones((3, 32, 4096), bool))
        one, levels = np.full((32, 2), 64, np.uint8), np.full((1, 3, 2), 64, np.uint8)
        packed = [words.pack(planes, form.order), levels, order.pack_row_terms(one, words.ROWS)]
        query = lambda *v, f=function, form=form: f(*v, 32, form)
        expected = lut_bits.reference_query(x, planes, levels[0], one, form)
        yield te_case(f"lut_{read}_query", query, [*reference(x, form), *packed], expected)


def large_group(number: int) -> Iterator[Case]:
    """Yield a query with groups, of such a size."""
    form, columns = lut_bits.FORMATS["fixed16"], 128
    x = np.ones((1, 4096), np.float32)
    planes = bcq.pack_planes(np.ones((3, 32, 4096), bool))
    codes = np.full((3, 32, 32, 2), 64, np.uint8)
    built = lut_bits_group.reference_build(x, form, columns)
    packed = [words.pack(planes, form.order), lut_group.pack_terms(codes, words.ROWS)]
    query = lambda *v: lut_bits_group.query(*v, 32, columns, form)
    expected = lut_bits_group.reference_query(x, planes, codes, columns, form)
    yield te_case("lut_bits_group", query, [*built, *packed], expected)


def halves_cases(number: int) -> Iterator[Case]:
    """Yield that many drawn products of many rows in half precision, and what builds their operand."""
    rng = np.random.default_rng(17)
    for _ in range(number):
        rows, outputs = int(rng.integers(1, 300)), int(rng.integers(1, 300))
        inputs, count = int(rng.integers(1, 600)), int(rng.integers(1, 5))
        x = (rng.standard_normal((rows, inputs)) * 10.0 ** rng.integers(-9, 9)).astype(np.float32)
        x[rng.integers(rows), 0] = rng.choice([np.inf, 1e-42, 3.0])
        built = list(gemm_half.reference_build(x))
        yield te_case("half_build", gemm_half.build, [x], built, (0,))
        planes = bcq.pack_planes(rng.random((count, outputs, inputs)) < 0.5)
        plane_terms, row_terms = terms(rng, count, 2), terms(rng, outputs, int(rng.integers(1, 4)))
        bias = [rng.standard_normal(outputs).astype(np.float32)] if rng.random() < 0.3 else []
        levels = np.repeat(plane_terms[None], order.row_blocks(outputs, words.ROWS), axis=0)
        operands = [levels, order.pack_row_terms(row_terms, words.ROWS), *bias]
        given = [*built, words.pack(planes, "fragments"), *operands]
        expected = gemm_half.reference_product(x, planes, plane_terms, row_terms, *bias)
        yield Case("gemm_half", half_product(given, outputs), given, [expected])


def half_product(given: list[Array], outputs: int) -> Any:
    """Return the operator for any number n of rows."""
    n = tirx.Var("n", "int64")
    sizes = [((n + 127) // 128 * 16, *given[0].shape[1:]), (n, 1), *(v.shape for v in given[2:])]
    operands = [te.placeholder(size, str(v.dtype)) for size, v in zip(sizes, given, strict=True)]
    y = gemm_half.product(*operands[:5], outputs, *operands[5:])
    return te.create_prim_func([*operands, y]).with_attr(OP, "gemm_half")


def long_rows(number: int) -> Iterator[Case]:
    """Yield transforms of rows that a GPU's blocks have to share, and rows that they cannot share."""
    rng = np.random.default_rng(13)
    for inputs, block in ((11008, 256), (14336, 1024), (28672, 4096)):
        x = rng.standard_normal((2, inputs)).astype(np.float32)
        signs = rng.integers(0, 256, inputs // 8).astype(np.uint8)
        rotate = lambda v, s, block=block: hadamard.rotate(v, s, block)
        yield te_case("hadamard", rotate, [x, signs], hadamard.reference_rotate(x, signs, block), (0,))
    x, form = rng.standard_normal((2, 13000)).astype(np.float32), lut_bits.FORMATS["bytes16"]
    build = lambda v: lut_bytes.build(v, form)
    yield te_case("lut_bytes_build", build, [x], [*lut_bytes.reference_build(x, form)])


def elementwise_cases(number: int) -> Iterator[Case]:
    """Yield the operators that work row by row, and the products of many rows."""
    rng = np.random.default_rng(3)
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    x, weight, codes, signs = normal(3, 192), normal(192), terms(rng, 192, 2), np.arange(24)
    signs = signs.astype(np.uint8)
    rotate = lambda v, s: hadamard.rotate(v, s, 64)
    yield te_case("hadamard", rotate, [x, signs], hadamard.reference_rotate(x, signs, 64), (0,))
    scaled = shift.reference_terms(x, codes)
    yield te_case("shift", shift.scale_columns, [x, np.ascontiguousarray(codes.T)], scaled, (0,))
    norm = lambda v, w: elementwise.rms_norm(v, w, 1e-5)
    normed = elementwise.reference_rms_norm(x, weight, 1e-5)
    yield te_case("rms_norm", norm, [x, weight], normed, (0,))
    yield te_case("add", elementwise.add, [x, x[::-1].copy()], x + x[::-1], (0, 1))
    gate = lambda g, u: activation.activate_mul(g, u, "silu", 96, 0, 96)
    gated = activation.reference_activate_mul(x[:, :96], x[:, 96:], "silu")
    yield te_case("activate_mul", gate, [x, x], gated, (0, 1))
    scores = normal(3, 8)
    weights = experts.reference_route(scores, 2)
    yield te_case("route", lambda v: experts.route(v, 2), [scores], weights, (0,))
    routes, outputs = weights[:, :2].copy(), [x, x[::-1].copy()]
    mixed = experts.reference_mix(routes, *outputs)
    yield te_case("mix", experts.mix, [routes, *outputs], mixed, (0, 1, 2))
    bias = normal(192)
    centre = lambda v, w, b: elementwise.layer_norm(v, w, b, 1e-5)
    centred = elementwise.reference_layer_norm(x, weight, bias, 1e-5)
    yield te_case("layer_norm", centre, [x, weight, bias], centred, (0,))
    positions, frequencies = np.array([0, 5, 9], np.int32), normal(12)
    angles = elementwise.reference_rope_angles(positions, frequencies)
    yield te_case("rope_angles", elementwise.rope_angles, [positions, frequencies], angles, (0,))
    layout = heads.Layout(4, 24, 24)
    turn = lambda v, a: heads.rope(v, a, layout)
    turned = heads.reference_rope(x, angles, layout)
    yield te_case("rope", turn, [x, angles], turned, (0, 1))
    raw, ids = normal(259, 96), np.array([3, 258, 0], np.int32)
    table = dense.pack_rows(raw, TARGET.lanes)
    yield te_case("embed", lambda i, t: dense.embed(i, t, 96), [ids, table], raw[ids], (0,))
    few, many = normal(2, 96), normal(55, 96)
    product = lambda v: (v.astype(np.float64) @ raw.T).astype(np.float32)
    head = lambda v, t: dense.multiply(v, t, 259)
    yield te_case("dense", head, [few, table], product(few))
    for dtype, tokens, inputs, outputs in (
        *(("F32", 1, 37, 64), ("F16", 5, 513, 100), ("BF16", 4, 1030, 33)),
        *(("I8", 1, 2000, 70), ("I8", 9, 300, 40)),
    ):
        x, scale = normal(tokens, inputs), normal(outputs)
        held = rng.integers(-127, 128, (outputs, inputs)) if dtype == "I8" else normal(outputs, inputs)
        stored = from_float32(held.astype(np.float32), dtype)
        given = [x, dense.pack_rows(stored, TARGET.lanes), *([scale] if dtype == "I8" else [])]
        multiply = lambda v, t, *s, n=outputs: dense.multiply(v, t, n, *s)
        expected = dense.reference_dense(x, stored, dtype, *given[2:])
        yield te_case("dense", multiply, given, expected)
    wide = lambda v, t: gemm.dense_product(v, t, 259)
    yield te_case("gemm_dense", wide, [many, table], product(many), (0,))
    for form in lut_bits.FORMATS.values():
        fixed = form.fixed
        rounded = lut.reference_rounded(x, fixed)
        yield te_case("lut_round", lambda v, f=fixed: lut.rounded(v, f), [x], rounded, (0,))
        planes, scales = bcq.pack_planes(rng.random((3, 100, 96)) < 0.5), terms(rng, 3, 2)
        rows = terms(rng, 100, 2)
        packed = [words.pack(planes, form.order), np.repeat(scales[None], 4, axis=0)]
        given = [many, *packed, order.pack_row_terms(rows, words.ROWS)]
        widened = lambda *v: gemm.planes_product(*v, 100)
        expected = gemm.reference_planes(many, planes, scales, rows)
        yield te_case("gemm_planes", widened, given, expected, (0,))


def attention_cases(number: int) -> Iterator[Case]:
    """Yield positions, and the attention of a sequence's tokens over drawn contexts, heads and rules."""
    rng = np.random.default_rng(5)
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    for sequence, length in ((False, [0, 17, 63]), (True, [67])):
        held = np.array(length, np.int32)
        places = attention.reference_positions(held, 3, sequence)
        yield Case("positions", attention.positions(sequence), [held], [places])
    for count, kv_heads, size, n in (
        (4, 2, 24, 3),
        (3, 3, 8, 70),
        (6, 2, 64, 17),
        (2, 1, 20, 33),
        (1, 1, 136, 1),
    ):
        before = int(rng.integers(0, 90))
        width = (before + n) // 16 + 1
        table, length = rng.permutation(width).astype(np.int32)[None], np.array([before], np.int32)
        keys, values = normal(2, width, kv_heads, size, 16), normal(2, width, kv_heads, 16, size)
        end = table[0, -1], (before + n) % 16  # nobody may read what lies behind
        keys[:, end[0], :, :, end[1] :] = values[:, end[0], :, end[1] :] = np.nan
        given = [normal(n, count * size), keys, values, table, length, 1]
        for rules in (None, Scores(0.2, window=20, cap=15.0), Scores(0.2, alibi=True)):
            expected = attend.reference_attend(*given, True, rules)
            function = attend.attend(count, kv_heads, size, True, rules)
            yield Case("attend", function, given, [expected])


def places(
    count: int, kv_heads: int, size: int, stacked: bool, angles: int, epsilon: float | None = None
) -> heads.Heads:
    """Return heads in one tensor, or queries alone and each key head beside its value."""
    if stacked:
        starts = np.cumsum([0, count * size, kv_heads * size])
        sizes, widths = (count, kv_heads, kv_heads), ((count + 2 * kv_heads) * size,) * 3
        stack = (heads.Layout(n, size, int(at)) for n, at in zip(sizes, starts, strict=True))
        return heads.Heads(*stack, widths, angles, epsilon)
    pair = [heads.Layout(kv_heads, size, at, 1, 2 * size) for at in (0, size)]
    widths = (count * size, *[2 * kv_heads * size] * 2)
    return heads.Heads(heads.Layout(count, size), *pair, widths, angles, epsilon)


# query heads, key heads, their size, whether in one tensor, angles, epsilon; of the first, several blocks
# have one key head
PARTS = (
    *((11, 1, 6, True, 3, None), (4, 2, 24, True, 10, 1e-5), (3, 3, 8, False, 0, None)),
    *((16, 2, 64, True, 32, 1e-6), (2, 1, 132, False, 66, 1e-6), (10, 2, 40, False, 16, None)),
    *((4, 4, 128, True, 64, None), (5, 1, 12, True, 0, 1e-5)),
)


def part_cases(number: int) -> Iterator[Case]:
    """Yield attention in parts over drawn contexts, windows and heads, and what joins the parts; of all
    heads, or so many of the first."""
    rng = np.random.default_rng(15)
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    for count, kv_heads, size, stacked, turned, epsilon in PARTS[: number or None]:
        of = places(count, kv_heads, size, stacked, turned, epsilon)
        longest = int(rng.integers(40, 300))
        length = np.array([0, 16, int(rng.integers(longest)), longest], np.int32)
        rows, width = len(length), longest // 16 + 1
        table = rng.permutation(rows * width).astype(np.int32).reshape(rows, width)
        keys = normal(2, rows * width, kv_heads, size, 16)
        values = normal(2, rows * width, kv_heads, 16, size)
        for row, own in zip(table, length, strict=True):  # nobody may read what is not of the past
            keys[:, row[own // 16], :, :, own % 16 :] = np.nan
            values[:, row[own // 16], :, own % 16 :] = np.nan
            keys[:, row[own // 16 + 1 :]] = values[:, row[own // 16 + 1 :]] = np.nan
        given = [normal(rows, columns) for columns in of.columns]
        angles = normal(rows, 2, turned) if turned else None
        norms = (normal(size), normal(size)) if epsilon else None
        rest = [*(norms or ()), *([angles] if turned else []), table, length, 1]
        for rules in (
            Scores(size**-0.5),
            Scores(0.2, window=int(rng.integers(1, 90)), cap=15.0),
            Scores(0.2, alibi=True),
        ):
            after = [keys.copy(), values.copy()]
            of_token = (tuple(given), norms, angles, table, length, 1, of, rules)
            found, states = attend_parts.reference_attend_parts(*after, *of_token)
            function = attend_parts.attend_parts(of, rules)
            yield Case("attend_parts", function, [keys, values, *given, *rest], [found, states], after)
            found = np.where(np.repeat(states[:, :, 1], size, axis=2) == 0, np.nan, found)
            of_query = (given[0], of.query, norms and norms[0], angles, epsilon)
            query = attend_parts.reference_ready(*of_query)
            whole = attend.reference_attend(query, *after, table, length, 1, False, rules)
            yield te_case("join", attend_parts.join, [found, states], whole, (0, 1))


def sampling_cases(number: int) -> Iterator[Case]:
    """Yield the operators that choose a token; those that work in place copy nothing."""
    rng, vocabulary, rows = np.random.default_rng(9), 700, 3
    logits = (rng.standard_normal((rows, vocabulary)) * 4).astype(np.float32)
    history = rng.integers(0, vocabulary, (rows, 9)).astype(np.int32)
    length, penalty = np.array([0, 4, 9], np.int32), np.array([1, 1.3, 1.5], np.float32)
    each = lambda function: np.stack([function(row) for row in range(rows)])
    penalized = each(
        lambda i: sample.reference_penalize(logits[i], history[i, : length[i]], penalty[i])
    )
    given = [logits, history, length, penalty]
    yield Case("sample_penalize", sample.penalize(vocabulary), given, [penalized])
    weights = each(lambda i: sample.reference_soften(logits[i], 0.7))
    seeds, steps = np.array([3, 9, 1 << 40], np.int64), np.array([0, 5, 7], np.int32)
    drawn = each(lambda i: sample.reference_draw(weights[i], int(seeds[i]), int(steps[i])))
    tokens = drawn.astype(np.int32)
    yield Case("sample_draw", sample.draw(vocabulary), [weights, seeds, steps], [tokens])


GROUPS = {
    "lookups": lookups,
    "shared_tables": shared_tables,
    "hostile": hostile,
    "groups": groups,
    "large_bytes": large_bytes,
    "large": lambda number: itertools.chain(large(number), large_group(number)),
    "elementwise": elementwise_cases,
    "attention": attention_cases,
    "parts": part_cases,
    "sampling": sampling_cases,
    "long": long_rows,
    "halves": halves_cases,
    "chains": lambda number: (Case("produce", *chain) for chain in chains(number)),
    "apart": lambda number: (Case("produce", *chain) for chain in chains(number, apart=True)),
}


def placed() -> Iterator[tuple[str, tirx.PrimFunc, list[Any], list[Any]]]:
    """Yield the operator that turns heads and writes the cache, of one tensor and of three."""
    rng = np.random.default_rng(8)
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    for stacked in (True, False):
        cache, of = [normal(2, 12, 2, 24, 16), normal(2, 12, 2, 16, 24)], places(4, 2, 24, stacked, 10)
        given, angles = [normal(3, width) for width in of.columns], normal(3, 2, 10)
        table, length = np.arange(12, dtype=np.int32)[None], np.array([30], np.int32)
        after = [array.copy() for array in cache]
        queries = place.reference_place(*after, tuple(given), angles, table, length, 1, of)
        operands = [*cache, *given, angles, table, length, 1, np.zeros_like(queries)]
        unchanged = [*given, angles, table, length]
        yield f"place {stacked}", place.place(of), operands, [*after, *unchanged, None, queries]


def in_place() -> dict[str, str]:
    """Return what differs in the operators that change an operand."""
    rng, vocabulary, rows = np.random.default_rng(2), 700, 3
    logits = (rng.standard_normal((rows, vocabulary)) * 4).astype(np.float32)
    heat, top_k = np.array([0, 1, 0.7], np.float32), np.array([0, 5, 40], np.int32)
    top_p = np.array([1, 0.5, 0.9], np.float32)
    each = lambda function: np.stack([function(row) for row in range(rows)])
    weights = each(lambda i: sample.reference_soften(logits[i], heat[i]))
    by_rank = each(lambda i: sample.reference_keep(weights[i], int(top_k[i]), 1.0))
    by_mass = each(lambda i: sample.reference_keep(weights[i], 0, float(top_p[i])))
    keys, values = np.zeros((2, 12, 2, 24, 16), np.float32), np.zeros((2, 12, 2, 16, 24), np.float32)
    new_keys, new_values = (rng.standard_normal((3, n)).astype(np.float32) for n in (48, 200))
    table, length = np.arange(12, dtype=np.int32).reshape(3, 4), np.array([0, 17, 63], np.int32)
    after = [keys.copy(), values.copy()]
    attention.reference_append(*after, new_keys, new_values[:, 48:96], table, length, 1, False)
    appended = [keys, values, new_keys, new_values, table, length, 1]
    append = attention.append(heads.Layout(2, 24, 48), False, 200)
    found = {}
    for name, function, given, expected in (
        ("soften", sample.soften(vocabulary), [logits, heat], [weights]),
        ("top-k", sample.keep(vocabulary, False), [weights, top_k], [by_rank]),
        ("top-p", sample.keep(vocabulary, True), [weights, top_p], [by_mass]),
        ("append", append, appended, after),
        *placed(),
    ):
        (run,) = compiled([Case(name, function, given, [])])
        arrays = [tvm.runtime.tensor(v, tvm.cuda(0)) if isinstance(v, Array) else v for v in given]
        run(*arrays)
        pairs = [(a, b) for a, b in zip(arrays, expected, strict=False) if b is not None]
        close = all(np.allclose(a.numpy(), b, rtol=0, atol=CLOSE) for a, b in pairs)
        found[name] = "" if close else "differs"
    return found


def compiled(cases: list[Case]) -> list[Callable[..., None]]:
    """Return the kernels of some cases, compiled together, as they are scheduled for the target."""
    named = {f"case{i}": case.function for i, case in enumerate(cases)}
    module = IRModule({name: f.with_attr("global_symbol", name) for name, f in named.items()})
    with tvm.target.Target(TARGET.target) as target:
        scheduled, counts = pipeline.apply_schedules(module, TARGET)
        assert not counts["fallback"]
        executable = tvm.compile(scheduled, target)
    return [executable[name] for name in named]


def main(group: str, folder: str, number: str = "0", *defines: str) -> None:
    """Run a group of cases and print what differs."""
    emulator, made = Emulator(Path(folder)), iter(range(1000))

    def compile_kernels(source: str) -> bytes:
        library = emulator.kernels(source, f"{group}{next(made)}", *defines)
        return b"\x7fELF:" + str(library).encode() + b"\0"

    tvm_ffi.register_global_func("tvm_callback_cuda_compile", compile_kernels, override=True)
    if group == "in_place":
        print(json.dumps(list(in_place().items())))
        return
    found, cases = [], list(GROUPS[group](int(number)))
    for start in range(0, len(cases), BATCH):
        part = cases[start : start + BATCH]
        found += [(c.name, c.difference(run)) for c, run in zip(part, compiled(part), strict=True)]
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
