"""What every look-up does once a row's sums are whole numbers: a thread a result, by shifts and adds."""

from dataclasses import dataclass
from typing import Any

from tvm.s_tir import Schedule
from tvm.script import tirx as T

from shiftadd_tvm.ops import OP, WAITS, lut, lut_bits, words
from shiftadd_tvm.ops.shift import apply_terms, shift_whole
from shiftadd_tvm.schedules.cuda._instructions import ADD_WIDE, LAUNCH_NEXT, PREFETCH, WAIT


def signed(digits: int, together: bool):
    """Return the inlined code that sets f[0] to 2 · sum - offset of row n of sums (M, P, D, 32).

    What belongs to one digit fits 32 bits, its double too; all of them take 64. `together`: the sums
    are of whole numbers, so that they stand in one place. wide (1,) is int64.
    """

    @T.inline
    def add(wide, sums, scale, m, p, n):
        wide[0] = T.int64(0)
        if together:
            double = T.bind(sums[m, p, 0, n])
            T.evaluate(ADD_WIDE(T.address_of(wide[0]), T.Cast("int32", double), T.uint32(1)))
            for d in T.unroll(digits):
                offset = T.bind(T.uint32(0) - scale[m, 1 + d])
                place = T.Cast("uint32", d * lut_bits.DIGIT)
                T.evaluate(ADD_WIDE(T.address_of(wide[0]), T.Cast("int32", offset), place))
        else:
            for d in T.unroll(digits):
                part = T.bind(sums[m, p, d, n] + sums[m, p, d, n] - scale[m, 1 + d])
                place = T.Cast("uint32", d * lut_bits.DIGIT)
                T.evaluate(ADD_WIDE(T.address_of(wide[0]), T.Cast("int32", part), place))

    @T.inline
    def set_(f, wide, sums, scale, m, p, n):
        add(wide, sums, scale, m, p, n)
        f[0] = T.Cast("float32", wide[0])

    return set_


def _weighted(value, plane_terms, block, p):
    """Return c[p] · value."""
    terms = int(plane_terms.shape[2])
    return apply_terms(value, [plane_terms[block, p, t] for t in range(terms)], shift_whole)


def _by_row(value, row_terms, row):
    """Return r[n] · value."""
    return apply_terms(value, [row_terms[t, row] for t in range(int(row_terms.shape[0]))])


@dataclass(frozen=True)
class Results:
    """What a block of threads has: `rows` rows of each of so many tokens, of `count` planes."""

    tokens: int
    count: int
    digits: int
    rows: int
    outputs: int  # N: rows behind it are padding
    threads: int
    together: bool  # sums are of whole numbers, not of digits
    biased: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the sums in shared memory."""
        return (self.tokens, self.count, 1 if self.together else self.digits, self.rows)


def clear(of: Results):
    """Return the inlined code that sets all sums to 0 and waits for it."""
    tokens, count, digits, rows = of.shape
    size, threads = tokens * count * digits * rows, of.threads

    @T.inline
    def clear(sums, tx):
        for z in T.unroll(-(-size // threads)):
            at = T.meta_var(z * threads + tx)
            if at < size:
                sums[
                    at // (count * digits * rows),
                    at // (digits * rows) % count,
                    at // rows % digits,
                    at % rows,
                ] = T.uint32(0)
        T.tvm_storage_sync("shared")

    return clear


def finish(of: Results):
    """Return the inlined code that waits for all sums and writes y of the rows from `first` on."""
    set_signed = signed(of.digits, of.together)
    items, rows, count, threads = of.tokens * of.rows, of.rows, of.count, of.threads
    outputs, biased = of.outputs, of.biased

    @T.inline
    def finish(sums, scale, plane_terms, row_terms, bias, y, first, tx):
        f = T.alloc_buffer((3,), "float32", scope="local")
        wide = T.alloc_buffer((1,), "int64", scope="local")
        T.tvm_storage_sync("shared")
        for z in T.unroll(-(-items // threads)):
            item = T.bind(z * threads + tx)
            row = T.bind(first + item % rows)
            if item < items and row < outputs:
                for p in T.unroll(count):
                    set_signed(f, wide, sums, scale, item // rows, p, item % rows)
                    f[1] = _weighted(f[0], plane_terms, row // words.ROWS, p)
                    f[2] = f[1] if p == 0 else f[2] + f[1]
                f[0] = lut.unfixed(f[2], scale[item // rows, 0])
                f[1] = _by_row(f[0], row_terms, row)
                if biased:
                    f[1] = f[1] + bias[row]
                y[item // rows, row] = f[1]

    return finish


def sizes(sch: Schedule) -> tuple[Any, ...]:
    """Return what the kernel of a look-up depends on: the shapes of what was built and of planes, terms
    of a plane and of a row, outputs, and whether there is a bias."""
    given, _, planes, plane_terms, row_terms, *bias, y = sch.mod["main"].params
    shape = lambda buffer: tuple(int(size) for size in buffer.shape)
    counts = (shape(plane_terms)[2], shape(row_terms)[0], int(y.shape[1]), bool(bias))
    return (shape(given), shape(planes), *counts)


def ask(overlap: bool, planes_shape, shared: int = 1):
    """Return the inlined code by which a kernel that overlaps the one before asks for the planes of its
    `shared` row blocks from `first` on, and waits; nothing where kernels do not overlap."""
    blocks, each = planes_shape[0], 4
    for size in planes_shape[1:]:
        each = each * size

    @T.inline
    def nothing(planes, first):
        pass

    @T.inline
    def ask(planes, first):
        count = T.meta_var(T.min(blocks - first, shared))
        at = T.address_of(planes[first, *(0 for _ in planes_shape[1:])])
        T.evaluate(PREFETCH(at, T.Cast("uint32", count * each)))
        T.evaluate(LAUNCH_NEXT())
        T.evaluate(WAIT())

    return ask if overlap else nothing


def shapes(given, digits, planes_shape, plane_width, row_width, outputs):
    """Return the shapes that `function` takes, of a look-up; `given` and `planes_shape` are shapes."""
    tokens, blocks, count = given[0], planes_shape[0], planes_shape[2]
    terms = ((blocks, count, plane_width), (row_width, blocks * words.ROWS))
    return (given, (tokens, 1 + digits), planes_shape, *terms, (tokens, outputs))


def function(op, body, shapes, biased, waits=False):
    """Return the TIR function of `op` whose kernel is `body`, of tensors of these shapes: what was built
    and its scale, planes, terms of planes and rows, (bias,) and y; `waits`: it waits by itself."""
    made = (_with_bias if biased else _plain)(op, body, *shapes)
    return made.with_attr(WAITS, True) if waits else made


def _plain(op, body, given, scales, planes_shape, plane_shape, row_shape, results):
    @T.prim_func(s_tir=True, private=True)
    def plain(
        given_: T.Buffer(given, "uint32"),
        scale: T.Buffer(scales, "uint32"),
        planes: T.Buffer(planes_shape, "uint32"),
        plane_terms: T.Buffer(plane_shape, "uint8"),
        row_terms: T.Buffer(row_shape, "uint8"),
        y: T.Buffer(results, "float32"),
    ):
        T.func_attr({"tirx.noalias": True, OP: op})
        body(given_, scale, planes, plane_terms, row_terms, None, y)

    return plain


def _with_bias(op, body, given, scales, planes_shape, plane_shape, row_shape, results):
    @T.prim_func(s_tir=True, private=True)
    def with_bias(
        given_: T.Buffer(given, "uint32"),
        scale: T.Buffer(scales, "uint32"),
        planes: T.Buffer(planes_shape, "uint32"),
        plane_terms: T.Buffer(plane_shape, "uint8"),
        row_terms: T.Buffer(row_shape, "uint8"),
        bias: T.Buffer((results[1],), "float32"),
        y: T.Buffer(results, "float32"),
    ):
        T.func_attr({"tirx.noalias": True, OP: op})
        body(given_, scale, planes, plane_terms, row_terms, bias, y)

    return with_bias
