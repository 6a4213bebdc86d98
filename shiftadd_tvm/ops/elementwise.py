"""The rest of a decoder block, which multiplies: norms, residual sums, positions, rotary angles."""

import math
from typing import Any

import numpy as np
from tvm import te, tirx
from tvm.tirx import const

from shiftadd_tvm.ops.shift import Array

Scaling = dict[str, Any]  # the parameters of a kind of rotary scaling, by their names in `Rope`


def rms_norm(values, weight, epsilon: float):
    """Return weight · x / sqrt(mean(x²) + epsilon) by row: values (n, H), weight (H,), float32."""
    rows, hidden = values.shape[0], int(values.shape[1])
    k = te.reduce_axis((0, hidden), "k")
    square = lambda i: te.sum(values[i, k] * values[i, k], axis=k)
    inverse = inverse_root(te.compute((rows,), square, name="squares"), hidden, epsilon)
    return te.compute(
        (rows, hidden), lambda i, j: values[i, j] * inverse[i] * weight[j], name="y"
    )


def inverse_root(squares, count: int, epsilon: float):
    """Return 1 / sqrt(sum / count + epsilon) of sums of so many squares, same shape: a stage of its own,
    so that it is computed once for a sum."""
    root = lambda *at: inverse_of(squares(*at), count, epsilon)
    return te.compute(squares.shape, root, name="inverse")


def inverse_of(squares, count: int, epsilon: float):
    """Return 1 / sqrt(sum / count + epsilon) of one sum of so many squares, as an expression."""
    return 1 / te.sqrt(squares * const(1.0 / count, "float32") + const(epsilon, "float32"))


def layer_norm(values, weight, bias, epsilon: float):
    """Return weight · (x - mean) / sqrt(variance + epsilon) + bias by row: values (n, H), weight and
    bias (H,), float32."""
    rows, hidden = values.shape[0], int(values.shape[1])
    k, m = te.reduce_axis((0, hidden), "k"), te.reduce_axis((0, hidden), "m")
    share = const(1.0 / hidden, "float32")
    sums = te.compute((rows,), lambda i: te.sum(values[i, k], axis=k), name="sums")
    centred = lambda i, j: values[i, j] - sums[i] * share
    square = lambda i: te.sum(centred(i, m) * centred(i, m), axis=m)
    inverse = inverse_root(te.compute((rows,), square, name="squares"), hidden, epsilon)
    return te.compute(
        (rows, hidden),
        lambda i, j: centred(i, j) * inverse[i] * weight[j] + bias[j],
        name="y",
    )


# 2^f on |f| <= ln(2) / 2, as Cephes' expf has it (Moshier), and ln(2) in two parts
EXP_POLYNOMIAL = (
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
)
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4
EXP_LOWEST, EXP_HIGHEST = -87.0, 88.0


def exp(value):
    """Return exp(value), float32, as an expression that vectorizes (the C library's does not):
    relative error below 2e-7 within [-87, 88], values outside are brought to the nearer end."""
    f32 = lambda number: const(number, "float32")
    x = te.min(te.max(value, f32(EXP_LOWEST)), f32(EXP_HIGHEST))
    whole = te.floor(x * f32(math.log2(math.e)) + f32(0.5))
    rest = x - whole * f32(LN2_HIGH) - whole * f32(LN2_LOW)
    power = f32(EXP_POLYNOMIAL[0])
    for coefficient in EXP_POLYNOMIAL[1:]:
        power = power * rest + f32(coefficient)
    fraction = power * rest * rest + rest + f32(1.0)
    exponent = (whole.astype("int32") + const(127, "int32")) << const(23, "int32")
    return tirx.reinterpret("float32", exponent) * fraction


def add(left, right):
    """Return left + right elementwise, float32 (n, H)."""
    return te.compute(left.shape, lambda i, j: left[i, j] + right[i, j], name="y")


def scale(values, factor: float):
    """Return factor · x elementwise, float32 (n, H)."""
    number = const(factor, "float32")
    return te.compute(values.shape, lambda i, j: values[i, j] * number, name="y")


def add_positions(values, positions, table, offset: int):
    """Return x + table[position + offset] by row: values (n, H), positions (n,) int32, table (P, H),
    float32."""
    row = lambda i, j: values[i, j] + table[positions[i] + offset, j]
    return te.compute(values.shape, row, name="y")


def rope_angles(positions, frequencies, factor: float = 1.0):
    """Return `factor` times cosines and sines, (n, 2, D/2), of positions (n,) int32 times frequencies
    (D/2,)."""
    half, number = int(frequencies.shape[0]), const(factor, "float32")

    def angle(i, part, j):
        phase = positions[i].astype("float32") * frequencies[j]
        turned = tirx.Select(part == 0, te.cos(phase), te.sin(phase))
        return turned if factor == 1.0 else turned * number

    return te.compute((positions.shape[0], 2, half), angle, name="y")


def rope_frequencies(head_dim: int, theta: float, scaling: Scaling | None = None) -> Array:
    """Return the inverse frequencies (head_dim / 2,) float32 as transformers computes them.

    `scaling` holds "factor" alone for linear scaling, "factors" of each wavelength, or the four
    parameters of llama3's rule.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = (1.0 / np.power(np.float32(theta), exponents)).astype(np.float32)
    if not scaling:
        return frequencies
    if "factors" in scaling:
        return (frequencies / np.asarray(scaling["factors"], np.float32)).astype(np.float32)
    if "original_positions" not in scaling:
        return (frequencies / scaling["factor"]).astype(np.float32)
    return _llama3_frequencies(frequencies, **scaling)


def _llama3_frequencies(
    frequencies: Array,
    factor: float,
    low_frequency_factor: float,
    high_frequency_factor: float,
    original_positions: float,
) -> Array:
    wavelength = 2 * math.pi / frequencies
    low = original_positions / low_frequency_factor
    high = original_positions / high_frequency_factor
    spread = high_frequency_factor - low_frequency_factor
    smooth = (original_positions / wavelength - low_frequency_factor) / spread
    medium = (1 - smooth) * frequencies / factor + smooth * frequencies
    scaled = np.where(wavelength > low, frequencies / factor, frequencies)
    between = (wavelength >= high) & (wavelength <= low)
    return np.where(between, medium, scaled).astype(np.float32)


def reference_rms_norm(values: Array, weight: Array, epsilon: float) -> Array:
    """Return `rms_norm` of values (n, H)."""
    mean = (values.astype(np.float64) ** 2).mean(axis=-1, keepdims=True)
    return (values / np.sqrt(mean + epsilon) * weight).astype(np.float32)


def reference_layer_norm(values: Array, weight: Array, bias: Array, epsilon: float) -> Array:
    """Return `layer_norm` of values (n, H)."""
    x = values.astype(np.float64)
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1, keepdims=True)
    return (centred / np.sqrt(variance + epsilon) * weight + bias).astype(np.float32)


def reference_scale(values: Array, factor: float) -> Array:
    """Return `scale`."""
    return values * np.float32(factor)


def reference_add_positions(values: Array, positions: Array, table: Array, offset: int) -> Array:
    """Return `add_positions`."""
    return values + table[positions + offset]


def reference_rope_angles(positions: Array, frequencies: Array, factor: float = 1.0) -> Array:
    """Return `rope_angles`."""
    phase = positions.astype(np.float32)[:, None] * frequencies
    return np.stack([np.cos(phase), np.sin(phase)], axis=1) * np.float32(factor)


REFERENCES = {
    "rms_norm": reference_rms_norm,
    "layer_norm": reference_layer_norm,
    "add": np.add,
    "scale": reference_scale,
    "add_positions": reference_add_positions,
    "rope_angles": reference_rope_angles,
}
