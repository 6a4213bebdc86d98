"""Attention's heads inside the outputs of a projection: where they lie, taken out, normalized, turned.

Head h of D numbers begins at column `start` + h // run · stride + h % run · D: side by side where all
heads are one run, and between other heads where a projection holds q, k and v head by head.
"""

from dataclasses import dataclass

import numpy as np
from tvm import te, tirx

from shiftadd_tvm.ops.elementwise import inverse_root
from shiftadd_tvm.ops.shift import Array


@dataclass(frozen=True)
class Layout:
    """So many heads of a size, and where they begin; run 0: side by side."""

    heads: int
    size: int
    start: int = 0
    run: int = 0
    stride: int = 0

    @property
    def spread(self) -> bool:
        """Tell whether the heads do not all lie side by side."""
        return 0 < self.run < self.heads

    def column(self, head, d):
        """Return the column of number d of a head."""
        if not self.spread:
            return self.start + head * self.size + d
        return self.start + head // self.run * self.stride + head % self.run * self.size + d

    def columns(self) -> Array:
        """Return the column of every number of every head, int64 (heads, D)."""
        head, d = np.arange(self.heads)[:, None], np.arange(self.size)
        return np.asarray(self.column(head, d))


@dataclass(frozen=True)
class Heads:
    """Where queries, keys and values lie in (n, columns) each, the angles A of a head (0: none), and the
    epsilon of the norm of each query and key head (None: no norm)."""

    query: Layout
    key: Layout
    value: Layout
    columns: tuple[int, int, int]
    angles: int
    epsilon: float | None = None


def take_heads(values, layout: Layout):
    """Return the heads side by side, float32 (n, heads D)."""
    size = layout.size
    return te.compute(
        (values.shape[0], layout.heads * size),
        lambda i, k: values[i, layout.column(k // size, k % size)],
        name="y",
    )


def head_norm(values, weight, epsilon: float, layout: Layout):
    """Return the heads side by side, float32 (n, heads D), RMS-normalized with weight (D,) one by
    one, or with weight (heads D,) all together."""
    size, width = layout.size, int(weight.shape[0])
    rows, parts = values.shape[0], layout.heads * size // width
    at = lambda i, j: values[i, layout.column(j // size, j % size)]
    k = te.reduce_axis((0, width), "k")
    square = lambda i, p: te.sum(at(i, p * width + k) * at(i, p * width + k), axis=k)
    squares = te.compute((rows, parts), square, name="squares")
    inverse = inverse_root(squares, width, epsilon)
    scaled = lambda i, j: at(i, j) * inverse[i, j // width] * weight[j % width]
    return te.compute((rows, parts * width), scaled, name="y")


def rope(values, angles, layout: Layout):
    """Rotate the first 2 A dimensions of each head, halves against each other as Hugging Face does,
    by angles (n, 2, A); return the heads side by side, float32 (n, heads D)."""
    size = layout.size
    rotated = lambda i, k: turned(values, angles, layout, i, k // size, k % size)
    return te.compute((values.shape[0], layout.heads * size), rotated, name="y")


def turned(values, angles, layout: Layout, i, head, d):
    """Return number d of a head of row i, rotated, as an expression."""
    half = int(angles.shape[2])
    value, partner = (values[i, layout.column(head, at)] for at in (d, partner_of(d, half)))
    angle = angles[i, 0, d % half], angles[i, 1, d % half]
    return rotated((value, partner), angle, d, half, layout.size)


def partner_of(d, half: int):
    """Return the number of a head that number d is turned against."""
    return (d + half) % (2 * half)


def rotated(pair, angle, d, half: int, size: int):
    """Return number d of `size`, rotated, by it and its partner, and the cosine and sine of their angle,
    as an expression."""
    (value, partner), (cosine, sine) = pair, angle
    found = value * cosine + partner * tirx.Select(d < half, -sine, sine)
    return found if 2 * half == size else tirx.Select(d < 2 * half, found, value)


def reference_take_heads(values: Array, layout: Layout) -> Array:
    """Return `take_heads`."""
    return values[:, layout.columns().reshape(-1)]


def reference_head_norm(values: Array, weight: Array, epsilon: float, layout: Layout) -> Array:
    """Return `head_norm`."""
    x = reference_take_heads(values, layout).astype(np.float64)
    parts = x.reshape(len(x), -1, len(weight))
    root = np.sqrt((parts**2).mean(axis=-1, keepdims=True) + epsilon)
    return (parts / root * weight).reshape(x.shape).astype(np.float32)


def reference_rope(values: Array, angles: Array, layout: Layout) -> Array:
    """Return `rope`."""
    half = angles.shape[2]
    x = reference_take_heads(values, layout).reshape(len(values), layout.heads, layout.size)
    cosine, sine = angles[:, None, 0], angles[:, None, 1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    turned = [first * cosine - second * sine, second * cosine + first * sine, rest]
    return np.concatenate(turned, axis=-1).reshape(len(values), -1).astype(np.float32)


REFERENCES = {
    "take_heads": reference_take_heads,
    "head_norm": reference_head_norm,
    "rope": reference_rope,
}
