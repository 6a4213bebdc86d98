"""Cases for the emulated GPU: what makes an activation ready, as one kernel (`fused_producers.py`).

A chain is drawn: where it begins, what is in it, and what is built at its end. Sums of squares are of
small whole numbers, so that every order of addition gives the same, and all must be equal to the
references.
"""

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import IRModule

from shiftadd_tvm.fused_producers import LONG, NAME, FuseProducers
from shiftadd_tvm.ops import (
    KEY,
    OP,
    activation,
    attend_parts,
    elementwise,
    hadamard,
    lut_bits,
    lut_bits_group,
    lut_bytes,
    shift,
)
from shiftadd_tvm.ops.scores import LOWEST

Array = np.ndarray
EPSILON = 1e-5
BLOCKS = (4, 16, 64, 256)
MOST = 17  # of the whole numbers that are drawn
BEGINS = ("value", "add", "function", "gate", "join", "balanced", "hostile")
APART = ("value", "add", "function", "gate", "hostile")  # of long rows that many blocks make
HOSTILE = (np.inf, -np.nan, 1e-42, -3e38, 1e-30, 2.0**64, 2.0**-63)


class Chain:
    """A Relax function of drawn operators, what it is given, and what it must give."""

    def __init__(self, rng: np.random.Generator, apart: bool) -> None:
        self._rng, self._builder, self._apart = rng, relax.BlockBuilder(), apart
        self._tokens = int(rng.choice([1, 2, 4]))
        self._inputs = 64 * int(rng.integers(1, 20)) + 4 * int(rng.integers(0, 4))
        if rng.random() < 0.1:  # more than one run of inputs for a warp
            self._tokens, self._inputs = 1, 256 * int(rng.integers(33, 90))
        if apart:
            self._tokens = int(rng.choice([1, 1, 2, 4, 32]))
            self._inputs = LONG + 4 * int(rng.integers(1, 400 if self._tokens > 4 else 3000))
        self._steps: list[Callable[[Any], Any]] = []
        self.given: list[Array] = []
        self.expected: list[Array] = []
        self._shared = self._balanced = self._normed = False

    def drawn(self) -> IRModule:
        """Return the module with the chain fused."""
        value = self._begin()
        if self._balanced:
            self._layer_norm()
        elif not self._apart and self._rng.random() < 0.5:
            self._norm(value)
        self._rotate() if self._rng.random() < 0.7 else None
        self._shift()
        form = list(lut_bits.FORMATS.values())[int(self._rng.integers(len(lut_bits.FORMATS)))]
        columns = 0
        if form.read == "bits" and self._rng.random() < 0.5:
            columns = int(self._rng.choice(lut_bits_group.COLUMNS))
        return self._fused(form, columns)

    def _draw(self, *shape: int) -> Array:
        found = self._rng.integers(-MOST, MOST + 1, shape).astype(np.float32)
        self.given.append(found)
        return found

    def _add(self, name: str, compute: Callable[..., Any], *places: int, key: Sequence[Any] = ()) -> None:
        """Note an operator of the value so far and of what was given at these places."""

        def emit(builder: Any, value: Any, given: list[Any]) -> Any:
            operands = [*([] if value is None else [value]), *(given[i] for i in places)]
            attrs = {OP: name, KEY: json.dumps(key)}
            return builder.emit_te(compute, *operands, primfunc_name_hint=name, primfunc_attrs=attrs)

        self._steps.append(emit)

    def _begin(self) -> Array:
        shape = (self._tokens, self._inputs)
        kind = self._rng.choice(APART if self._apart else BEGINS)
        if kind == "join":
            self.value = self._join()
            self._begun = kind
            return self.value
        left = self._draw(*shape)
        self.value = left
        if kind == "hostile":  # what no shift may take as it is, and next to it what it may
            left[0, self._rng.choice([0, 300, -1]) if self._apart else 0] = self._rng.choice(HOSTILE)
        if kind == "balanced":  # sums of rows are 0, as layer_norm is exact then
            self._balanced = True
            left[:, -1] -= left.sum(axis=1)
        if kind == "function":
            most = self._inputs - LONG if self._apart else self._inputs
            start = 4 * int(self._rng.integers(most // 8))
            self.value = np.maximum(left[:, start:], 0)
            self._inputs -= start
            size = self._inputs
            applied = lambda v: activation.activate(v, "relu", size, start)
            self._add("activate", applied, 0, key=("relu", size, start))
        if kind == "add":
            self.value = left + self._draw(*shape)
            self._add("add", elementwise.add, 0, 1)
            self._shared = not self._apart and bool(self._rng.random() < 0.6)
        if kind == "gate":
            right = self._draw(*shape)
            self.value = np.maximum(left, 0) * right
            gated = lambda g, u: activation.activate_mul(g, u, "relu", shape[1], 0, 0)
            self._add("activate_mul", gated, 0, 1, key=("relu", shape[1], 0, 0))
        if self._shared:
            self.expected.append(self.value)
        self._begun = kind
        return self.value

    def _join(self) -> Array:
        """Draw what parts of attention found: equal peaks and sums that are a power of two together, so
        that shares and quotients are exact; one part has no positions, and was not written."""
        found = self._draw(self._tokens, 4, self._inputs)
        empty = int(self._rng.integers(4))
        found[:, empty] = np.nan
        states = np.full((self._tokens, 4, 2, 4), 3, np.float32)
        states[:, :, 1] = 1
        states[:, (empty + 1) % 4, 1] = 2
        states[:, empty, 0], states[:, empty, 1] = LOWEST, 0
        self.given.append(states)
        self._add("join", attend_parts.join, 0, 1)
        return np.delete(found, empty, axis=1).sum(axis=1, dtype=np.float32) / np.float32(4)

    def _norm(self, value: Array) -> None:
        if self._begun in ("gate", "hostile"):  # sums of squares would not be exact
            return
        self._normed = True
        weight = self._draw(self._inputs)
        one, share = np.float32(1), np.float32(1.0 / self._inputs)
        squares = (value.astype(np.float64) ** 2).sum(axis=1).astype(np.float32)
        inverse = one / np.sqrt(squares * share + np.float32(EPSILON))
        self.value = value * inverse[:, None] * weight
        norm = lambda v, w: elementwise.rms_norm(v, w, EPSILON)
        self._add("rms_norm", norm, len(self.given) - 1, key=(EPSILON,))

    def _layer_norm(self) -> None:
        weight, bias = self._draw(self._inputs), self._draw(self._inputs)
        one, share = np.float32(1), np.float32(1.0 / self._inputs)
        squares = (self.value.astype(np.float64) ** 2).sum(axis=1).astype(np.float32)
        inverse = one / np.sqrt(squares * share + np.float32(EPSILON))
        self.value = self.value * inverse[:, None] * weight + bias
        norm = lambda v, w, b: elementwise.layer_norm(v, w, b, EPSILON)
        at = len(self.given)
        self._add("layer_norm", norm, at - 2, at - 1, key=(EPSILON,))

    def _rotate(self) -> None:
        fits = [block for block in BLOCKS if self._inputs % block == 0]
        block, count = int(self._rng.choice(fits)), -(-self._inputs // 8)
        signs = self._rng.integers(0, 256, count).astype(np.uint8)
        self.given.append(signs)
        self.value = hadamard.reference_rotate(self.value, signs, block)
        rotate = lambda v, s: hadamard.rotate(v, s, block)
        self._add("hadamard", rotate, len(self.given) - 1, key=(block,))

    def _shift(self) -> None:
        codes = self._rng.integers(58, 70, (self._inputs, 2)).astype(np.uint8)
        self.given.append(np.ascontiguousarray(codes.T))
        self.value = shift.reference_terms(self.value, codes)
        self._add("shift", shift.scale_columns, len(self.given) - 1)

    def _fused(self, form: lut_bits.Format, columns: int) -> IRModule:
        build, _, reference = lut_bytes.OPERATORS[form.read]
        name = f"lut_{form.read}_build"
        if columns:
            build = functools.partial(lut_bits_group.build, columns=columns)
            reference = functools.partial(lut_bits_group.reference_build, columns=columns)
            name = "lut_bits_group_build"
        if self._is_apart():
            self.expected += [self.value, self._peaks()]
        self.expected += reference(self.value, form)
        self._add(name, lambda v: build(v, form))
        types = [relax.TensorType(v.shape, str(v.dtype)) for v in self.given]
        given = [relax.Var(f"given{i}", type_) for i, type_ in enumerate(types)]
        builder = self._builder
        with builder.function("main", given):
            with builder.dataflow():
                value = given[0] if self._begun in ("value", "balanced", "hostile") else None
                values = []
                for step in self._steps:
                    value = step(builder, value, given)
                    values.append(value)
                pair = [builder.emit(relax.TupleGetItem(value, i)) for i in range(2)]
                result = builder.emit_output(relax.Tuple([*values[: self._shared], *pair]))
            builder.emit_func_output(result)
        module: IRModule = FuseProducers(1 << 20)(relax.transform.LegalizeOps()(builder.get()))
        return module


    def _is_apart(self) -> bool:
        """Tell whether the row is made by many blocks."""
        if self._apart:
            return True
        long = self._inputs > LONG and self._begun in APART
        return long and not self._shared and not self._normed

    def _peaks(self) -> Array:
        """Return the largest magnitude of each run, by its bits."""
        sizes = np.ascontiguousarray(self.value, np.float32).view(np.uint32) & 0x7FFFFFFF
        return np.maximum.reduceat(sizes, np.arange(0, self._inputs, 256), axis=1)


def chains(number: int, apart: bool = False) -> Iterator[tuple[Any, list[Array], list[Array]]]:
    """Yield that many drawn chains, long ones whose runs are apart or any: the kernel's function, what it
    is given, what it must give."""
    rng = np.random.default_rng(11)
    for _ in range(number):
        chain = Chain(rng, apart)
        module = chain.drawn()
        functions = {
            v.name_hint: f for v, f in module.functions_items() if isinstance(f, tvm.tirx.PrimFunc)
        }
        assert list(functions) == [NAME], "something is left beside the fused kernel"
        yield functions[NAME], chain.given, chain.expected
