"""dense: matrices that are not binary-coded (embedding, head), in the precision they are stored in.

Stored in lane order: raw (NB, K, L), row b L + l in lane l, so that the head's product is vertical
over rows and the same bytes serve the embedding's look-up. NB is even: prefill reads panels of two.
The raw type is float32, float16, uint16 (the bits of bfloat16) or int8 (with a float32 scale a row,
applied to the output).
"""

import numpy as np
from tvm import te
from tvm.tirx import const, reinterpret

from shiftadd_tvm.ops.shift import Array
from shiftadd_tvm.tensorfile import to_float32

# safetensors dtype -> dtype of the raw lanes
RAW_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "uint16", "I8": "int8"}


def lane_blocks(outputs: int, lanes: int) -> int:
    """Return NB: lane blocks for N rows, padded to an even count."""
    return -(-outputs // (2 * lanes)) * 2


def widen(table, *index):
    """Return the float32 expression of one element of a raw table."""
    raw = table(*index)
    if table.dtype == "uint16":
        return reinterpret("float32", raw.astype("uint32") << const(16, "uint32"))
    return raw.astype("float32")


def embed(ids, table, hidden: int, scale=None):
    """Return rows (n, hidden) float32 of table (NB, hidden, L) raw for ids (n,) int32."""
    lanes = int(table.shape[2])

    def row(i, k):
        value = widen(table, ids[i] // lanes, k, ids[i] % lanes)
        return value if scale is None else value * scale[ids[i]]

    return te.compute((ids.shape[0], hidden), row, name="embedded")


def multiply(values, table, outputs: int, scale=None, bias=None):
    """Return y (M, N) float32 = values (M, K) times the transposed stored matrix, few rows M."""
    blocks, inputs, lanes = (int(size) for size in table.shape)
    k = te.reduce_axis((0, inputs), "k")
    sums = te.compute(
        (values.shape[0], blocks, lanes),
        lambda m, b, lane: te.sum(values[m, k] * widen(table, b, k, lane), axis=k),
        name="sums",
    )
    shape = (values.shape[0], outputs)
    return finish(lambda m, n: sums[m, n // lanes, n % lanes], shape, scale, bias)


def finish(value, shape, scale, bias):
    """Return y[m, n] = value(m, n) (· scale[n]) (+ bias[n])."""

    def scaled(m, n):
        y = value(m, n) if scale is None else value(m, n) * scale[n]
        return y if bias is None else y + bias[n]

    return te.compute(shape, scaled, name="y")


def pack_rows(raw: Array, lanes: int) -> Array:
    """Return a raw matrix (N, K) in lane order (NB, K, lanes), padding rows zero."""
    outputs, inputs = raw.shape
    blocks = lane_blocks(outputs, lanes)
    padded = np.zeros((blocks * lanes, inputs), raw.dtype)
    padded[:outputs] = raw
    return np.ascontiguousarray(padded.reshape(blocks, lanes, inputs).transpose(0, 2, 1))


def reference_embed(ids: Array, raw: Array, dtype: str, scale: Array | None = None) -> Array:
    """Return rows (n, K) float32 of a raw matrix (N, K) of safetensors `dtype`."""
    rows = to_float32(raw[ids], dtype)
    return rows if scale is None else rows * scale[ids][:, None]


def reference_dense(
    values: Array, raw: Array, dtype: str, scale: Array | None = None, bias: Array | None = None
) -> Array:
    """Return values (M, K) times a raw matrix (N, K) transposed, float32 (M, N)."""
    y = values.astype(np.float64) @ to_float32(raw, dtype).astype(np.float64).T
    y = y if scale is None else y * scale
    return (y if bias is None else y + bias).astype(np.float32)


REFERENCES = {"embed": reference_embed, "dense": reference_dense}
