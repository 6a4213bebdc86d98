"""Activation functions of an MLP, gated or not, and the soft cap of scores and logits.

silu        x / (1 + e^-x)
relu        max(x, 0)
gelu        x Phi(x), the normal distribution's by Abramowitz and Stegun's 7.1.26 (error 1.5e-7)
gelu_tanh   x / (1 + e^-2u), u = sqrt(2 / pi) (x + 0.044715 x^3): 0.5 x (1 + tanh u)
"""

import math

import numpy as np
from tvm import te
from tvm.tirx import abs as absolute
from tvm.tirx import const

from shiftadd_tvm.ops.elementwise import exp
from shiftadd_tvm.ops.shift import Array

# erfc(z) = t (a1 + t (a2 + ...)) e^-z², t = 1 / (1 + p z), for z >= 0
ERFC_P = 0.3275911
ERFC = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
TANH_CUBE, TANH_SCALE = 0.044715, math.sqrt(2 / math.pi)


def _number(value: float):
    return const(value, "float32")


def _silu(x):
    return x / (_number(1.0) + exp(-x))


def _relu(x):
    return te.max(x, _number(0.0))


def _gelu(x):
    z = absolute(x) * _number(math.sqrt(0.5))
    t = _number(1.0) / (_number(1.0) + _number(ERFC_P) * z)
    series = _number(ERFC[-1])
    for coefficient in ERFC[-2::-1]:
        series = series * t + _number(coefficient)
    outside = series * t * exp(-z * z) * _number(0.5)  # of the distribution's mass, on x's side
    return _relu(x) - absolute(x) * outside


def _gelu_tanh(x):
    u = x * (_number(1.0) + _number(TANH_CUBE) * x * x) * _number(2 * TANH_SCALE)
    return x / (_number(1.0) + exp(-u))


FUNCTIONS = {"silu": _silu, "relu": _relu, "gelu": _gelu, "gelu_tanh": _gelu_tanh}


def activate(values, name: str, size: int, start: int = 0):
    """Return the function `name` of `size` columns from `start` on, float32 (n, size)."""
    function = FUNCTIONS[name]
    return te.compute(
        (values.shape[0], size), lambda i, j: function(values[i, j + start]), name="y"
    )


def activate_mul(gate, up, name: str, size: int, gate_start: int = 0, up_start: int = 0):
    """Return function(gate) · up elementwise, float32 (n, size), each from its first column."""
    function = FUNCTIONS[name]
    product = lambda i, j: function(gate[i, j + gate_start]) * up[i, j + up_start]
    return te.compute((gate.shape[0], size), product, name="y")


def capped(value, cap: float):
    """Return cap · tanh(value / cap), float32, as an expression: absolute error below cap · 1e-6."""
    power = exp(value * _number(2.0 / cap))
    return _number(cap) - _number(2.0 * cap) / (power + _number(1.0))


def soft_cap(values, cap: float):
    """Return cap · tanh(x / cap) elementwise, float32 (n, H)."""
    return te.compute(values.shape, lambda i, j: capped(values[i, j], cap), name="y")


def _reference(values: Array, name: str) -> Array:
    x = values.astype(np.float64)
    if name == "relu":
        return np.maximum(x, 0)
    if name == "gelu":
        return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    u = x if name == "silu" else 2 * TANH_SCALE * (x + TANH_CUBE * x**3)
    return x * 0.5 * (1 + np.tanh(u / 2))


def reference_activate(values: Array, name: str) -> Array:
    """Return `activate` of values (n, size)."""
    return _reference(values, name).astype(np.float32)


def reference_activate_mul(gate: Array, up: Array, name: str) -> Array:
    """Return `activate_mul` of gate and up (n, size)."""
    return (_reference(gate, name) * up).astype(np.float32)


def reference_soft_cap(values: Array, cap: float) -> Array:
    """Return `soft_cap`."""
    return (cap * np.tanh(values.astype(np.float64) / cap)).astype(np.float32)


REFERENCES = {
    "activate": reference_activate,
    "activate_mul": reference_activate_mul,
    "soft_cap": reference_soft_cap,
}
