"""The rest of a decoder block, which multiplies: norms, gated SiLU, residual sums, rotations."""

import math

import numpy as np
from tvm import te, tirx
from tvm.tirx import const

from shiftadd_tvm.ops.shift import Array


def rms_norm(values, weight, epsilon: float):
    """Return weight · x / sqrt(mean(x²) + epsilon) by row: values (n, H), weight (H,), float32."""
    rows, hidden = values.shape[0], int(values.shape[1])
    k = te.reduce_axis((0, hidden), "k")
    square = lambda i: te.sum(values[i, k] * values[i, k], axis=k)
    squares = te.compute((rows,), square, name="squares")
    mean, eps = const(1.0 / hidden, "float32"), const(epsilon, "float32")
    return te.compute(
        (rows, hidden),
        lambda i, j: values[i, j] * (1 / te.sqrt(squares[i] * mean + eps)) * weight[j],
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


def silu_mul(gate, up, size: int, gate_start: int = 0, up_start: int = 0):
    """Return gate · sigmoid(gate) · up elementwise, float32 (n, size), each from its first column."""
    one = const(1.0, "float32")

    def gated(i, j):
        value = gate[i, j + gate_start]
        return value / (one + exp(-value)) * up[i, j + up_start]

    return te.compute((gate.shape[0], size), gated, name="y")


def add(left, right):
    """Return left + right elementwise, float32 (n, H)."""
    return te.compute(left.shape, lambda i, j: left[i, j] + right[i, j], name="y")


def rope_angles(positions, frequencies):
    """Return cosines and sines, (n, 2, D/2), of positions (n,) int32 times frequencies (D/2,)."""
    half = int(frequencies.shape[0])

    def angle(i, part, j):
        phase = positions[i].astype("float32") * frequencies[j]
        return tirx.Select(part == 0, te.cos(phase), te.sin(phase))

    return te.compute((positions.shape[0], 2, half), angle, name="y")


def rope(values, angles, heads: int, start: int = 0):
    """Rotate each head's halves as Hugging Face does: heads D columns of values (n, ...) from
    `start` on, angles (n, 2, D/2); return (n, heads D)."""
    half = int(angles.shape[2])

    def rotated(i, k):
        head, d = k // (2 * half), k % (2 * half)
        j, first = d % half, d < half
        partner = head * (2 * half) + (d + half) % (2 * half)
        sine = tirx.Select(first, -angles[i, 1, j], angles[i, 1, j])
        return values[i, start + k] * angles[i, 0, j] + values[i, start + partner] * sine

    return te.compute((values.shape[0], heads * 2 * half), rotated, name="y")


def rope_frequencies(head_dim: int, theta: float, scaling: dict[str, float] | None = None) -> Array:
    """Return the inverse frequencies (head_dim / 2,) float32 as transformers computes them.

    `scaling` holds "factor" alone for linear scaling, or the four parameters of llama3's rule.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = (1.0 / np.power(np.float32(theta), exponents)).astype(np.float32)
    if not scaling:
        return frequencies
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


def reference_silu_mul(gate: Array, up: Array) -> Array:
    """Return `silu_mul`."""
    return (gate / (1 + np.exp(-gate.astype(np.float64))) * up).astype(np.float32)


def reference_rope_angles(positions: Array, frequencies: Array) -> Array:
    """Return `rope_angles`."""
    phase = positions.astype(np.float32)[:, None] * frequencies
    return np.stack([np.cos(phase), np.sin(phase)], axis=1)


def reference_rope(values: Array, angles: Array) -> Array:
    """Return `rope` of values (n, heads D)."""
    half = angles.shape[2]
    x = values.reshape(len(values), -1, 2, half)
    cosine, sine = angles[:, None, 0], angles[:, None, 1]
    rotated = [x[:, :, 0] * cosine - x[:, :, 1] * sine, x[:, :, 1] * cosine + x[:, :, 0] * sine]
    return np.stack(rotated, axis=2).reshape(values.shape).astype(np.float32)


REFERENCES = {
    "rms_norm": reference_rms_norm,
    "silu_mul": reference_silu_mul,
    "add": np.add,
    "rope_angles": reference_rope_angles,
    "rope": reference_rope,
}
