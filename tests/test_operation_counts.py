"""The counts of a report against a machine that does one operation at a time, and counts it.

The machine also has to get the right result, so that what it counts is what the operators need.
"""

import collections
import dataclasses
import math

import numpy as np
import pytest

from shiftadd_tvm import bcq, energy, operation_counts, powers
from shiftadd_tvm.lookup_counts import Matrix, Reader, Terms, linears
from shiftadd_tvm.operation_counts import LEFT, Count, Rest, merged, total

BITS = 12  # of a whole number's size


class Machine:
    """Arithmetic on single numbers, counted under the part that is being worked on."""

    def __init__(self) -> None:
        self.parts: dict[str, collections.Counter[str]] = collections.defaultdict(
            collections.Counter
        )
        self.part = ""

    def done(self, kind: str) -> None:
        self.parts[self.part][kind] += 1

    def counts(self) -> dict[str, Count]:
        return merged([{part: Count(**counter) for part, counter in self.parts.items()}])

    def add(self, a: float, b: float) -> float:
        self.done("whole_adds" if isinstance(a, int) and isinstance(b, int) else "adds")
        return a + b

    def multiply(self, a: float, b: float) -> float:
        self.done("multiplies")
        return a * b

    def call(self, function, *arguments: float) -> float:
        self.done("functions")
        return function(*arguments)

    def shift(self, a: float, power: float) -> float:
        self.done("shifts")
        return a * power

    def look(self, table: list[float], index: int) -> float:
        self.done("lookups")
        return table[index]

    def sum(self, values: list[float]) -> float:
        result = values[0]
        for value in values[1:]:
            result = self.add(result, value)
        return result

    def scale(self, value: float, codes: np.ndarray) -> float:
        terms = [float(powers.decode_terms(codes[t : t + 1])) for t in range(len(codes))]
        return self.sum([self.shift(value, term) for term in terms])


def rotated(machine: Machine, x: list[float], rotation: bcq.Rotation | None) -> list[float]:
    if rotation is None:
        return x
    machine.part = "rotation"
    signs = bcq.unpack_planes(rotation.signs, len(x))
    for k, sign in enumerate(signs):
        machine.done("flips")
        x[k] *= float(sign)
    step = 1
    while step < rotation.block:
        x = [
            machine.add(x[k ^ step], -x[k]) if k & step else machine.add(x[k], x[k ^ step])
            for k in range(len(x))
        ]
        step *= 2
    return [machine.shift(value, 1 / math.sqrt(rotation.block)) for value in x]


def whole_tables(
    machine: Machine, x: list[float], columns: int
) -> tuple[list[list[int]], list[int], float]:
    """Return tables of subset sums, the sums of |q| of runs of `columns`, and 2^e."""
    machine.part = "tables"
    power = 2.0 ** (math.floor(math.log2(max(map(abs, x)))) + 1 - BITS)
    q = [round(machine.shift(value, 1 / power)) for value in x]
    sizes = [machine.sum([abs(v) for v in q[s : s + columns]]) for s in range(0, len(q), columns)]
    q += [0] * (-len(q) % 4)
    tables = []
    for start in range(0, len(q), 4):
        four = q[start : start + 4]
        entries = [machine.sum([-min(value, 0) for value in four])]
        for index in range(1, 16):
            high = index.bit_length() - 1
            entries.append(machine.add(entries[index - (1 << high)], four[high]))
        tables.append(entries)
    return tables, sizes, power


def float_tables(machine: Machine, x: list[float]) -> list[list[float]]:
    """Return tables of signed sums."""
    machine.part = "tables"
    x = x + [0.0] * (-len(x) % 4)
    tables = []
    for start in range(0, len(x), 4):
        a, b, c, d = x[start : start + 4]
        plus, minus = machine.add(a, b), machine.add(a, -b)
        low = [-plus, minus, -minus, plus]
        plus, minus = machine.add(c, d), machine.add(c, -d)
        high = [-plus, minus, -minus, plus]
        tables.append([machine.add(low[i % 4], high[i // 4]) for i in range(16)])
    return tables


def nibbles(weight: bcq.BCQWeight, plane: int, row: int) -> list[int]:
    packed = weight.planes[plane, row]
    return [int(packed[g // 2]) >> 4 * (g % 2) & 15 for g in range(-(-weight.shape[1] // 4))]


def looked_up(machine: Machine, tables: list[list[float]], indices: list[int]) -> float:
    machine.part = "look-ups"
    return machine.sum([machine.look(t, i) for t, i in zip(tables, indices, strict=True)])


def centred(machine: Machine, found: float, size: int) -> float:
    return float(machine.add(machine.add(found, found), -size))


def separable(machine: Machine, weights: list[bcq.BCQWeight], x: list[float]) -> list[list[float]]:
    machine.part = "scales"
    columns = weights[0].scales.column_terms
    x = [machine.scale(value, codes) for value, codes in zip(x, columns, strict=True)]
    tables, (size,), power = whole_tables(machine, x, len(x))
    outputs = []
    for weight in weights:
        y = []
        for row in range(weight.shape[0]):
            planes = []
            for plane in range(weight.bits):
                found = looked_up(machine, tables, nibbles(weight, plane, row))
                value = centred(machine, found, size)
                machine.part = "scales"
                planes.append(machine.scale(value, weight.scales.plane_terms[plane]))
            value = machine.shift(machine.sum(planes), power)
            y.append(machine.scale(value, weight.scales.row_terms[row]))
        outputs.append(y)
    return outputs


def by_group(machine: Machine, weights: list[bcq.BCQWeight], x: list[float]) -> list[list[float]]:
    """Blocks of one row by whole numbers, other blocks by float tables of their own."""
    columns = weights[0].scales.columns
    grouped = weights[0].scales.rows == 1
    tables, sizes, power = whole_tables(machine, x, columns) if grouped else ([], [], 1.0)
    outputs = []
    for weight in weights:
        tables = tables if grouped else float_tables(machine, x)
        y = []
        for row in range(weight.shape[0]):
            parts = []
            for plane in range(weight.bits):
                indices = nibbles(weight, plane, row)
                for c in range(weight.scales.block_terms.shape[2]):
                    run = slice(c * columns // 4, (c + 1) * columns // 4)
                    found = looked_up(machine, tables[run], indices[run])
                    found = centred(machine, found, sizes[c]) if grouped else found
                    machine.part = "scales"
                    block = weight.scales.block_terms[plane, row // weight.scales.rows, c]
                    parts.append(machine.scale(found, block))
            value = machine.sum(parts)
            y.append(machine.shift(value, power) if grouped else value)
        outputs.append(y)
    return outputs


def by_column(machine: Machine, weights: list[bcq.BCQWeight], x: list[float]) -> list[list[float]]:
    outputs = []
    for weight in weights:
        count, blocks = weight.scales.block_terms.shape[:2]
        sets = {}
        for plane in range(count):
            for block in range(blocks):
                machine.part = "scales"
                codes = weight.scales.block_terms[plane, block]
                shifted = [machine.scale(v, c) for v, c in zip(x, codes, strict=True)]
                sets[plane, block] = float_tables(machine, shifted)
        y = []
        for row in range(weight.shape[0]):
            tables = [t for p in range(count) for t in sets[p, row // weight.scales.rows]]
            indices = [i for p in range(count) for i in nibbles(weight, p, row)]
            y.append(looked_up(machine, tables, indices))
        outputs.append(y)
    return outputs


TERMS = {"row": 2, "column": 3, "plane": 2, "block": 2}


def codes(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Return term bytes of small powers of two, some negative, some absent."""
    found = rng.integers(62, 67, shape) + 128 * rng.integers(0, 2, shape)
    return np.where(rng.random(shape) < 0.1, 0, found).astype(np.uint8)


def random_group(form: str, rng: np.random.Generator) -> list[bcq.BCQWeight]:
    inputs = 22 if form == "separable, odd" else 32
    rotation = None if "odd" in form else bcq.Rotation(16, bcq.random_signs(inputs, 3))
    shared = codes(rng, inputs, TERMS["column"])
    weights = []
    for outputs, bits in ((5, 2), (6, 3)):
        planes = bcq.pack_planes(rng.random((bits, outputs, inputs)) < 0.5)
        if form.startswith("separable"):
            row, plane = codes(rng, outputs, TERMS["row"]), codes(rng, bits, TERMS["plane"])
            scales = bcq.SeparableScales(row, shared, plane)
        else:
            rows, columns = {"groups": (1, 8), "blocks": (4, 8), "columns": (4, 1)}[form]
            shape = (bits, -(-outputs // rows), -(-inputs // columns), TERMS["block"])
            scales = bcq.BlockScales(rows, columns, codes(rng, *shape))
        weights.append(bcq.BCQWeight((outputs, inputs), planes, scales, rotation))
    return weights


RUN = {"groups": by_group, "blocks": by_group, "columns": by_column}


@pytest.mark.parametrize("form", ["separable", "separable, odd", "groups", "blocks", "columns"])
def test_linears(form: str) -> None:
    rng = np.random.default_rng(1)
    weights = random_group(form, rng)
    x = rng.standard_normal(weights[0].shape[1])
    machine = Machine()
    ready = rotated(machine, x.tolist(), weights[0].rotation)
    found = RUN.get(form, separable)(machine, weights, ready)
    for y, weight in zip(found, weights, strict=True):
        expected = bcq.dequantize(weight) @ x
        np.testing.assert_allclose(y, expected, atol=2e-3 * np.abs(expected).max())

    matrices = []
    for weight in weights:
        scales = weight.scales
        block = None if isinstance(scales, bcq.SeparableScales) else (scales.rows, scales.columns)
        matrices.append(Matrix(weight.shape[0], weight.bits, Terms(**TERMS), block=block))
    rotation = weights[0].rotation.block if weights[0].rotation else 1
    assert linears(Reader(len(x), rotation, tuple(matrices))) == machine.counts()


def test_a_bias_is_one_addition_an_output() -> None:
    without, with_ = (Matrix(7, 2, Terms(**TERMS), bias=bias) for bias in (False, True))
    difference = total(linears(Reader(8, 1, (with_,))).values())
    assert difference == total(linears(Reader(8, 1, (without,))).values()) + Count(adds=7)


def attended(machine: Machine, queries: np.ndarray, keys: np.ndarray, values: np.ndarray) -> list:
    """Attention of one head (D,) over (T, D), page by page with a running maximum."""
    size, peak, weight, out = len(queries), -1e30, 0.0, [0.0] * len(queries)
    weights: list[float] = []
    for start in range(0, len(keys), operation_counts.PAGE):
        page = slice(start, start + operation_counts.PAGE)
        scores = []
        for key in keys[page].tolist():
            score = 0.0
            for a, b in zip(queries.tolist(), key, strict=True):
                score = machine.add(score, machine.multiply(a, b))
            scores.append(machine.multiply(score, 1 / math.sqrt(size)))
        fresh = max([peak, *scores])
        factor = machine.call(math.exp, machine.add(peak, -fresh))
        weight, out = machine.multiply(weight, factor), [machine.multiply(o, factor) for o in out]
        weights = [machine.call(math.exp, machine.add(score, -fresh)) for score in scores]
        for part, value in zip(weights, values[page].tolist(), strict=True):
            weight = machine.add(weight, part)
            products = [machine.multiply(part, v) for v in value]
            out = [machine.add(o, product) for o, product in zip(out, products, strict=True)]
        peak = fresh
    return [machine.call(lambda a, b: a / b, o, weight) for o in out]


def test_attention() -> None:
    rng = np.random.default_rng(2)
    heads, kv_heads, size, positions, layers = 4, 2, 6, 37, 3
    machine = Machine()
    machine.part = "attention"
    for _ in range(size // 2):  # cosine and sine of position · frequency
        angle = machine.multiply(1.0, 0.5)
        machine.call(math.cos, angle), machine.call(math.sin, angle)
    for _ in range(layers):
        for _ in range((heads + kv_heads) * size):
            machine.add(machine.multiply(1.0, 1.0), machine.multiply(1.0, 1.0))
        for _ in range(heads):
            q, k, v = (rng.standard_normal((n, size)) for n in (1, positions, positions))
            scores = np.exp(q[0] @ k.T / math.sqrt(size))
            np.testing.assert_allclose(attended(machine, q[0], k, v), scores @ v / scores.sum())
    model = Rest(layers, 8, 8, 8, heads, kv_heads, size, (), False)
    assert operation_counts.rest(model, positions)["attention"] == machine.counts()["attention"]


@pytest.mark.parametrize("scaled", [False, True])
def test_head_and_norms(scaled: bool) -> None:
    hidden, vocabulary, layers, intermediate = 6, 9, 2, 5
    machine = Machine()
    machine.part = "norms"
    x = [0.5, -1.0, 2.0, 0.25, -0.125, 3.0]
    squares = machine.sum([machine.multiply(v, v) for v in x])
    mean = machine.add(machine.multiply(squares, 1 / hidden), 1e-5)
    inverse = machine.call(lambda v: 1 / v, machine.call(math.sqrt, mean))
    normed = [machine.multiply(machine.multiply(v, inverse), 1.0) for v in x]
    assert sum(v * v for v in normed) == pytest.approx(hidden, rel=1e-3)
    machine.part = "head"
    for _ in range(vocabulary):
        logit = machine.sum([machine.multiply(v, 1.0) for v in normed])
        if scaled:
            machine.multiply(logit, 0.5)
    machine.part = "gate"
    for _ in range(layers * intermediate):
        power = machine.call(math.exp, 1.0)
        machine.multiply(machine.call(lambda a, b: a / b, 1.0, machine.add(1.0, power)), 2.0)
    model = Rest(layers, hidden, intermediate, vocabulary, 1, 1, 2, (hidden,), scaled)
    found, expected = operation_counts.rest(model, 1), machine.counts()
    for part in ("norms", "head", "gate"):
        assert found[part] == expected[part]
    other = Count(multiplies=hidden * scaled, adds=2 * layers * hidden)
    assert found["embedding and residuals"] == other


def test_energy_is_counts_times_constants() -> None:
    parts = merged(
        [{"look-ups": Count(lookups=10, whole_adds=20), "scales": Count(shifts=30, adds=5)}]
    )
    parts["head"] = Count(multiplies=2, adds=3)
    paper, code = (energy.estimate(s, parts, operation_counts.dense(4, 5)) for s in energy.SETS)
    assert paper.linears == pytest.approx(3.7 + 2.0 + 3.9 + 5.5)
    assert code.linears == pytest.approx(3.7 + 8.0 + 3.0 + 4.5)
    assert paper.built() == pytest.approx(paper.linears + 7.4 + 3.3)
    assert paper.mixed() == pytest.approx(paper.linears + 1.8 + 1.2)
    assert paper.dense() == pytest.approx(20 * 1.3 + 1.8 + 1.2)
    assert code.baseline == pytest.approx(20 * 1.5)
    assert set(paper.left) == set(LEFT) and energy.reading(2) == 200


def test_counts_add_up() -> None:
    numbers = Count(*range(1, len(dataclasses.fields(Count)) + 1))
    assert numbers.times(3) == numbers + numbers + numbers
    assert total([]) == Count()
