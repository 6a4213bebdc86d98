"""The data-free quantizer: alternate codes and scales, every scale rounded to powers of two inside
the loop.

`quantize` rotates one input group (linears that read the same activation) with one Hadamard
rotation, then hands it to the fit of its scale layout: `separable_fit` or `block_fit`. It knows
neither models nor files.
"""

from collections.abc import Sequence

import numpy as np

from shiftadd_tvm import bcq, block_fit, separable_fit
from shiftadd_tvm.settings import QuantizeSettings

Array = np.ndarray

_CHUNK = 1 << 16  # weights that are rotated at a time


def quantize(
    matrices: Sequence[Array], bits: Sequence[int], settings: QuantizeSettings
) -> list[bcq.BCQWeight]:
    """Return one weight for each float32 (N_i, K) matrix of an input group, with its own bits.

    The matrices must be finite, C-contiguous and below 2^100; they are the working memory and hold
    other values afterwards. The weights share the rotation and, when separable, `column_terms`.
    """
    inputs = matrices[0].shape[1]
    assert all(m.dtype == np.float32 and m.shape[1] == inputs for m in matrices)
    rotation = make_rotation(inputs, settings)
    if rotation is not None:
        for matrix in matrices:
            _rotate_in_place(matrix, rotation)
    fitted: Sequence[separable_fit.Fitted | block_fit.Fitted]
    if settings.scale_format == "separable":
        fitted = separable_fit.fit(matrices, bits, settings)
    else:
        fitted = [block_fit.fit(m, b, settings) for m, b in zip(matrices, bits, strict=True)]
    return [
        bcq.BCQWeight((matrix.shape[0], inputs), planes, scales, rotation)
        for matrix, (planes, scales) in zip(matrices, fitted, strict=True)
    ]


def make_rotation(inputs: int, settings: QuantizeSettings) -> bcq.Rotation | None:
    """Return the rotation of a linear with that many inputs, None where no block fits."""
    block = bcq.rotation_block(inputs, settings.max_rotation)
    return None if block == 1 else bcq.Rotation(block, bcq.random_signs(inputs, settings.seed))


def _rotate_in_place(matrix: Array, rotation: bcq.Rotation) -> None:
    step = max(1, _CHUNK // matrix.shape[1])
    for start in range(0, matrix.shape[0], step):
        matrix[start : start + step] = bcq.rotate(matrix[start : start + step], rotation)
