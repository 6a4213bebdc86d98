"""Binary-coded weights with power-of-two scales: the representation, its bytes, its reference.

A linear W (N outputs, K inputs) is stored as `bits` binary planes b_i in {-1, +1} and scales that
are signed sums of powers of two (`powers.py`). Two layouts hold the four scale formats:

    separable  W[n,k] = r[n] · s[k] · sum_i c[i] · b_i[n,k]                 one table for all planes
    block      W[n,k] = sum_i a[i, n // rows, k // columns] · b_i[n,k]
                        row-group 1 × G · column-wise rows × 1 · block-wise rows × 8

With a rotation the planes describe W · D · H instead of W, where D is a diagonal of random signs
and H a block-diagonal orthonormal Hadamard matrix of block 4^k: y = planes(H (D x)), adds only.

Bytes, canonical and target-neutral (K8 = ceil(K / 8), ceil everywhere):

    planes        U8 (bits, N, K8)   bit t, least significant first, of byte j is input 8 j + t;
                                     1 means +1; bits past K are 0
    row_terms     U8 (N, <=3)        r: separable only, term bytes
    column_terms  U8 (K, <=3)        s: separable only; stored once for linears that share an input
    plane_terms   U8 (bits, <=3)     c: separable only
    block_terms   U8 (bits, N / rows, K / columns, <=3)   a: block layout only
    signs         U8 (K8)            D, packed as the planes are; stored once for a shared input

Nothing here knows models, files or targets.
"""

from dataclasses import dataclass, field

import numpy as np

from shiftadd_tvm.powers import decode_terms

MAX_BITS = 4
MAX_TERMS = {"row_terms": 3, "column_terms": 3, "plane_terms": 3, "block_terms": 3}

_CHUNK = 1 << 16  # values that are transformed at a time: small enough for a core's cache

Array = np.ndarray


@dataclass(frozen=True)
class Rotation:
    """x -> H (D x): signs uint8 (ceil(K / 8)), bit 1 keeps and bit 0 flips; block a power of 4."""

    block: int
    signs: Array


@dataclass(frozen=True)
class SeparableScales:
    """Term bytes of r (N, <=3), s (K, <=3) and c (bits, <=3)."""

    row_terms: Array
    column_terms: Array
    plane_terms: Array


@dataclass(frozen=True)
class BlockScales:
    """Term bytes of a (bits, ceil(N / rows), ceil(K / columns), <=3); columns is 1 or 4 j."""

    rows: int
    columns: int
    block_terms: Array


@dataclass(frozen=True)
class BCQWeight:
    """One binary-coded linear; shapes as in the module's head, `ValueError` where they clash."""

    shape: tuple[int, int]  # (N, K)
    planes: Array
    scales: SeparableScales | BlockScales
    rotation: Rotation | None = None
    bits: int = field(init=False)

    def __post_init__(self) -> None:
        """Derive `bits` and check every shape."""
        object.__setattr__(self, "bits", int(self.planes.shape[0]))
        for name, found, expected in self._shapes():
            if found != expected:
                raise ValueError(f"{name} has shape {found}, expected {expected}")

    def _shapes(self) -> list[tuple[str, tuple[int, ...], tuple[int, ...]]]:
        outputs, inputs = self.shape
        packed = -(-inputs // 8)
        scales = self.scales
        checks: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []
        checks += [("planes", self.planes.shape, (self.bits, outputs, packed))]
        if isinstance(scales, SeparableScales):
            checks += [("row_terms", scales.row_terms.shape[:1], (outputs,))]
            checks += [("column_terms", scales.column_terms.shape[:1], (inputs,))]
            checks += [("plane_terms", scales.plane_terms.shape[:1], (self.bits,))]
        else:
            blocks = (self.bits, -(-outputs // scales.rows), -(-inputs // scales.columns))
            checks += [("block_terms", scales.block_terms.shape[:3], blocks)]
        if self.rotation is not None:
            checks += [("signs", self.rotation.signs.shape, (packed,))]
        return checks

    @property
    def nbytes(self) -> int:
        """All stored bytes: planes, terms and signs."""
        return sum(array.nbytes for array in self.arrays().values())

    def arrays(self) -> dict[str, Array]:
        """Return the stored arrays by the suffix under which the packed model names them."""
        arrays = {"planes": self.planes}
        if isinstance(self.scales, SeparableScales):
            arrays["row_terms"] = self.scales.row_terms
            arrays["column_terms"] = self.scales.column_terms
            arrays["plane_terms"] = self.scales.plane_terms
        else:
            arrays["block_terms"] = self.scales.block_terms
        if self.rotation is not None:
            arrays["signs"] = self.rotation.signs
        return arrays


def pack_planes(planes: Array) -> Array:
    """Pack booleans (..., K), true for +1, into uint8 (..., ceil(K / 8)), first input lowest."""
    return np.packbits(planes, axis=-1, bitorder="little")


def unpack_planes(packed: Array, inputs: int) -> Array:
    """Return float32 (..., inputs) of -1 and +1 from packed planes or signs."""
    flags = np.unpackbits(packed, axis=-1, count=inputs, bitorder="little")
    return flags.astype(np.float32) * 2 - 1


def rotation_block(inputs: int, limit: int) -> int:
    """Return the largest power of 4 up to `limit` that divides `inputs` (1: no rotation fits)."""
    block = 1
    while block * 4 <= limit and inputs % (block * 4) == 0:
        block *= 4
    return block


def random_signs(inputs: int, seed: int) -> Array:
    """Return the packed signs, uint8 (ceil(inputs / 8)), drawn from `seed`."""
    return pack_planes(np.random.Generator(np.random.PCG64(seed)).random(inputs) < 0.5)


def hadamard(values: Array, block: int) -> Array:
    """Return the orthonormal Walsh-Hadamard transform (Sylvester order) of each run of `block`
    entries along the last axis; float in, same dtype out; block is a power of 4, so that the
    factor 1 / sqrt(block) is a power of two and everything else adds."""
    result = np.array(values, order="C")
    runs = result.reshape(-1, block)
    for start in range(0, len(runs), max(1, _CHUNK // block)):
        part = runs[start : start + max(1, _CHUNK // block)]
        turned = np.ascontiguousarray(part.T)  # so that every stage adds long rows
        _add_and_subtract(turned)
        part[...] = turned.T
    result *= result.dtype.type(1 / np.sqrt(block))
    return result


def _add_and_subtract(turned: Array) -> None:
    """Replace the columns of (block, n) by their unscaled transforms."""
    step = 1
    while step < len(turned):
        pairs = turned.reshape(-1, 2, step, turned.shape[1])
        left, right = pairs[:, 0], pairs[:, 1]
        difference = left - right
        left += right
        right[...] = difference
        step *= 2


def rotate(values: Array, rotation: Rotation) -> Array:
    """Return H (D x) for activations (..., K), which also turns W (N, K) into W D H."""
    signs = unpack_planes(rotation.signs, values.shape[-1]).astype(values.dtype)
    return hadamard(values * signs, rotation.block)


def unrotate(values: Array, rotation: Rotation) -> Array:
    """Undo `rotate`: H is its own inverse, and so is D."""
    signs = unpack_planes(rotation.signs, values.shape[-1]).astype(values.dtype)
    return hadamard(values, rotation.block) * signs


def dequantize_rotated(weight: BCQWeight) -> Array:
    """Return the float32 (N, K) matrix of the planes and scales, the rotation not undone."""
    outputs, inputs = weight.shape
    scales = weight.scales
    if isinstance(scales, SeparableScales):
        dense = _sums(weight.planes, decode_terms(scales.plane_terms), inputs)
        dense *= decode_terms(scales.column_terms)
        dense *= decode_terms(scales.row_terms)[:, None]
        return dense
    dense = np.zeros(weight.shape, np.float32)
    levels = decode_terms(scales.block_terms)  # (bits, N / rows, K / columns)
    for plane, level in zip(weight.planes, levels, strict=True):
        by_row = np.repeat(level, scales.rows, axis=0)[:outputs]
        by_weight = np.repeat(by_row, scales.columns, axis=1)[:, :inputs]
        dense += by_weight * unpack_planes(plane, inputs)
    return dense


def _sums(planes: Array, levels: Array, inputs: int) -> Array:
    """Return the sum of ±level over the planes, float32 (N, inputs), looked up by a weight's bits."""
    table = np.zeros(1 << len(levels), np.float32)
    index = np.zeros((planes.shape[1], inputs), np.uint8)
    for bit, (plane, level) in enumerate(zip(planes, levels, strict=True)):
        table += np.where(np.arange(len(table)) >> bit & 1, level, -level)
        flags = np.unpackbits(plane, axis=-1, count=inputs, bitorder="little")
        index |= np.left_shift(flags, bit, out=flags)
    return table.take(index)


def dequantize(weight: BCQWeight) -> Array:
    """Return the float32 (N, K) matrix in the model's own basis: the reference of every kernel."""
    dense = dequantize_rotated(weight)
    return dense if weight.rotation is None else unrotate(dense, weight.rotation)
