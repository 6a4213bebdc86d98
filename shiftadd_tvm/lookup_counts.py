"""What the quantized linears of one token cost in operations; see `operation_counts.py`.

Every term of a scale counts, absent or not; a look-up is that of a whole table entry; the 16 entries
of 4 inputs are built from one another, an addition each.
"""

from dataclasses import dataclass

from shiftadd_tvm.operation_counts import Count, Parts, merged

GROUP, ENTRIES = 4, 16  # inputs and entries of a table
WHOLE_BUILD = GROUP - 1 + ENTRIES - 1  # the entry of no +1, and each of the others from another
FLOAT_BUILD = 4 + ENTRIES  # two half sums of each pair, and their combinations


@dataclass(frozen=True)
class Terms:
    """How many powers of two a scale is the sum of."""

    row: int = 0
    column: int = 0
    plane: int = 0
    block: int = 0


@dataclass(frozen=True)
class Matrix:
    """Planes (bits, outputs, K); `block` is (rows, columns) that share a scale, None: separable."""

    outputs: int
    bits: int
    terms: Terms
    bias: bool = False
    block: tuple[int, int] | None = None


@dataclass(frozen=True)
class Reader:
    """One activation of K inputs and the matrices that read it; `rotation` is 1 where there is none.

    `whole`: look-ups hold activations as whole numbers (int16, int8), else as float32.
    """

    inputs: int
    rotation: int
    matrices: tuple[Matrix, ...]
    whole: bool = True


def linears(reader: Reader) -> Parts:
    """Return what the linears that read one activation cost together, rotation and tables once."""
    first, inputs = reader.matrices[0], reader.inputs
    parts = [{"rotation": _rotation(reader)}]
    if first.block is None:
        parts.append({"scales": _terms(first.terms.column, inputs)})
    whole = reader.whole and (first.block is None or _grouped(first.block))
    alone = first.block is not None and not whole  # each matrix builds its own tables
    if not alone:
        sums = -(-inputs // first.block[1]) if first.block else 1
        parts.append({"tables": _tables(inputs, whole, sums)})
    for matrix in reader.matrices:
        parts += [
            _block(matrix, inputs, whole) if matrix.block else _separable(matrix, inputs, whole)
        ]
        if alone and matrix.block and matrix.block[1] != 1:
            parts.append({"tables": _tables(inputs, whole)})
    return merged(parts)


def _grouped(block: tuple[int, int]) -> bool:
    """Tell whether scales of such blocks have the fast form on whole numbers (`ops/lut_group.py`)."""
    return block[0] == 1 and block[1] % 8 == 0 and block[1] <= 1024


def _groups(inputs: int) -> int:
    return -(-inputs // GROUP)


def _terms(terms: int, values: int) -> Count:
    return Count(shifts=terms * values, adds=(terms - 1) * values)


def _rotation(reader: Reader) -> Count:
    if reader.rotation == 1:
        return Count()
    butterflies = reader.inputs * (reader.rotation.bit_length() - 1)
    return Count(adds=butterflies, shifts=reader.inputs, flips=reader.inputs)


def _tables(inputs: int, whole: bool, sums: int = 1) -> Count:
    """Return the building of tables; whole numbers are shifted to their place, and their sizes are
    added up, to `sums` sums."""
    if whole:
        return Count(shifts=inputs, whole_adds=inputs - sums + WHOLE_BUILD * _groups(inputs))
    return Count(adds=FLOAT_BUILD * _groups(inputs))


def _looked_up(sums: int, length: int, whole: bool) -> Count:
    """Return `sums` sums of `length` look-ups; of whole numbers, 2 S - (the sum of |q|) follows."""
    found = Count(lookups=sums * length)
    adds = sums * (length - 1)
    return found + (Count(whole_adds=adds + 2 * sums) if whole else Count(adds=adds))


def _finish(matrix: Matrix, whole: bool) -> Count:
    """Return what follows the sum of the planes: the exponent of the activation, and the bias."""
    exponent = Count(shifts=matrix.outputs) if whole else Count()
    return exponent + (Count(adds=matrix.outputs) if matrix.bias else Count())


def _separable(matrix: Matrix, inputs: int, whole: bool) -> Parts:
    outputs, sums = matrix.outputs, matrix.outputs * matrix.bits
    scales = _terms(matrix.terms.plane, sums) + _terms(matrix.terms.row, outputs)
    planes = Count(adds=outputs * (matrix.bits - 1))
    looked_up = _looked_up(sums, _groups(inputs), whole)
    return {"look-ups": looked_up, "scales": scales + planes + _finish(matrix, whole)}


def _block(matrix: Matrix, inputs: int, whole: bool) -> Parts:
    assert matrix.block is not None
    rows, columns = matrix.block
    outputs, bits, terms = matrix.outputs, matrix.bits, matrix.terms.block
    if columns == 1:  # the activation is shifted and tabled for each plane and block of rows
        sets = bits * -(-outputs // rows)
        tables = _tables(inputs, False).times(sets)
        scales = _terms(terms, inputs).times(sets) + _finish(matrix, False)
        found = _looked_up(outputs, _groups(inputs) * bits, False)
        return {"tables": tables, "scales": scales, "look-ups": found}
    blocks = -(-inputs // columns)
    sums = outputs * bits * blocks
    # the sums of a row and plane read ceil(K / 4) entries between them
    adds = outputs * bits * (_groups(inputs) - blocks)
    kinds = {"whole_adds": adds + 2 * sums} if whole else {"adds": adds}
    found = Count(lookups=outputs * bits * _groups(inputs), **kinds)
    scales = _terms(terms, sums) + Count(adds=outputs * (bits * blocks - 1))
    return {"look-ups": found, "scales": scales + _finish(matrix, whole)}
