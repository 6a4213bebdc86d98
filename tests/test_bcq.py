"""The representation: packing, rotation, and dequantization against triple loops."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shiftadd_tvm import bcq, powers
from shiftadd_tvm.bcq import BCQWeight, BlockScales, Rotation, SeparableScales

quick = settings(max_examples=60, derandomize=True, deadline=None, database=None)


def sylvester(block: int) -> np.ndarray:
    """Return the Hadamard matrix by its definition: (-1)^(bits that i and j share)."""
    signs = [[(-1.0) ** (i & j).bit_count() for j in range(block)] for i in range(block)]
    return np.array(signs) / np.sqrt(block)


def random_terms(rng: np.random.Generator, *shape: int, terms: int) -> np.ndarray:
    return powers.round_to_terms(rng.uniform(-2, 2, shape), terms)


def make(
    outputs: int, inputs: int, bits: int = 2, scale: str = "separable", rotation: int = 1
) -> BCQWeight:
    rng = np.random.default_rng(outputs * 1000 + inputs)
    planes = bcq.pack_planes(rng.random((bits, outputs, inputs)) < 0.5)
    scales: SeparableScales | BlockScales
    if scale == "separable":
        sizes = ((outputs, 2), (inputs, 1), (bits, 3))
        scales = SeparableScales(*(random_terms(rng, size, terms=t) for size, t in sizes))
    else:
        rows, columns = (int(part) for part in scale.split("x"))
        grid = (bits, -(-outputs // rows), -(-inputs // columns))
        scales = BlockScales(rows, columns, random_terms(rng, *grid, terms=2))
    turn = Rotation(rotation, bcq.random_signs(inputs, 1)) if rotation > 1 else None
    return BCQWeight((outputs, inputs), planes, scales, turn)


@quick
@given(st.integers(1, 70), st.integers(1, 3), st.integers(0, 99))
def test_pack_unpack(inputs: int, rows: int, seed: int) -> None:
    flags = np.random.default_rng(seed).random((2, rows, inputs)) < 0.5
    packed = bcq.pack_planes(flags)
    assert packed.shape == (2, rows, -(-inputs // 8)) and packed.dtype == np.uint8
    np.testing.assert_array_equal(bcq.unpack_planes(packed, inputs), np.where(flags, 1.0, -1.0))
    if inputs % 8:
        assert not (packed[..., -1] >> (inputs % 8)).any()  # bits past K are zero


def test_the_first_input_is_the_lowest_bit() -> None:
    flags = np.zeros((1, 10), bool)
    flags[0, [0, 3, 9]] = True
    assert bcq.pack_planes(flags).tolist() == [[0b00001001, 0b00000010]]


@pytest.mark.parametrize("block", [1, 4, 16, 64])
def test_hadamard_is_sylvesters_matrix(block: int) -> None:
    x = np.random.default_rng(0).standard_normal((3, 2 * block))
    expected = np.concatenate([x[:, :block] @ sylvester(block), x[:, block:] @ sylvester(block)], 1)
    np.testing.assert_allclose(bcq.hadamard(x, block), expected, atol=1e-12)


def test_hadamard_keeps_the_dtype() -> None:
    assert bcq.hadamard(np.ones((1, 4), np.float32), 4).dtype == np.float32


@pytest.mark.parametrize(("inputs", "block"), [(4, 4), (48, 16), (64, 64), (96, 16), (12, 4)])
def test_unrotate_undoes_rotate(inputs: int, block: int) -> None:
    rotation = Rotation(block, bcq.random_signs(inputs, 7))
    x = np.random.default_rng(1).standard_normal((2, inputs))
    turned = bcq.rotate(x, rotation)
    assert not np.allclose(turned, x)
    np.testing.assert_allclose(np.linalg.norm(turned), np.linalg.norm(x))
    np.testing.assert_allclose(bcq.unrotate(turned, rotation), x, atol=1e-12)
    np.testing.assert_allclose(bcq.rotate(bcq.unrotate(x, rotation), rotation), x, atol=1e-12)


def test_rotation_block() -> None:
    sizes = [(576, 256), (100, 256), (7, 64), (1024, 0)]
    assert [bcq.rotation_block(*size) for size in sizes] == [64, 4, 1, 1]
    assert bcq.rotation_block(4096, 1024) == 1024 and bcq.rotation_block(4096, 255) == 64


def test_random_signs_are_seeded_and_packed() -> None:
    np.testing.assert_array_equal(bcq.random_signs(100, 3), bcq.random_signs(100, 3))
    assert bcq.random_signs(100, 3).shape == (13,)
    assert bcq.random_signs(100, 3).tolist() != bcq.random_signs(100, 4).tolist()


def loops(weight: BCQWeight) -> np.ndarray:
    """Return the rotated matrix entry by entry, as the module's head defines it."""
    outputs, inputs = weight.shape
    value = lambda codes: float(powers.decode_terms(codes[None])[0])
    dense = np.zeros((outputs, inputs))
    for i in range(weight.bits):
        for n in range(outputs):
            for k in range(inputs):
                bit = weight.planes[i, n, k // 8] >> (k % 8) & 1
                scales = weight.scales
                if isinstance(scales, SeparableScales):
                    terms = scales.row_terms[n], scales.column_terms[k], scales.plane_terms[i]
                    scale = value(terms[0]) * value(terms[1]) * value(terms[2])
                else:
                    scale = value(scales.block_terms[i, n // scales.rows, k // scales.columns])
                dense[n, k] += scale if bit else -scale
    return dense


SIZES = [(1, 1), (3, 7), (5, 33), (13, 20), (8, 64)]


@pytest.mark.parametrize("scale", ["separable", "1x4", "1x16", "5x1", "2x8", "3x4", "100x12"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_dequantize_equals_triple_loops(size: tuple[int, int], scale: str) -> None:
    for bits in (1, 4):
        weight = make(*size, bits=bits, scale=scale)
        found = bcq.dequantize(weight)
        assert found.dtype == np.float32 and found.shape == size
        np.testing.assert_allclose(found, loops(weight), rtol=1e-5, atol=1e-5)


def test_a_rotated_weight_multiplies_rotated_inputs() -> None:
    weight = make(5, 48, 3, rotation=16)
    assert weight.rotation is not None
    x = np.random.default_rng(2).standard_normal((2, 48)).astype(np.float32)
    expected = bcq.rotate(x, weight.rotation) @ bcq.dequantize_rotated(weight).T
    np.testing.assert_allclose(x @ bcq.dequantize(weight).T, expected, atol=1e-4)


def test_arrays_and_bytes() -> None:
    weight = make(5, 33, bits=3, rotation=4)  # 33 is not rotated by 4, but the bytes are counted
    names = ["planes", "row_terms", "column_terms", "plane_terms", "signs"]
    assert list(weight.arrays()) == names
    assert weight.nbytes == 3 * 5 * 5 + 5 * 2 + 33 + 3 * 3 + 5
    block = make(5, 33, bits=3, scale="2x8")
    assert list(block.arrays()) == ["planes", "block_terms"]
    assert block.nbytes == 3 * 5 * 5 + 3 * 3 * 5 * 2


@pytest.mark.parametrize("name", ["planes", "row_terms", "column_terms", "plane_terms", "signs"])
def test_a_wrong_shape_is_named(name: str) -> None:
    weight = make(6, 16, bits=2, rotation=16)
    cut = weight.arrays()[name][:-1]
    if name == "planes":
        cut = weight.planes[:, :-1]
        changed = {"planes": cut}
    elif name == "signs":
        changed = {"rotation": Rotation(16, cut)}
    else:
        changed = {"scales": dataclasses.replace(weight.scales, **{name: cut})}
    fields = {"shape": weight.shape, "planes": weight.planes, "scales": weight.scales}
    with pytest.raises(ValueError, match=f"{name} has shape"):
        BCQWeight(**(fields | {"rotation": weight.rotation} | changed))


def test_wrong_block_terms_are_named() -> None:
    weight = make(6, 16, scale="2x8")
    assert isinstance(weight.scales, BlockScales)
    scales = dataclasses.replace(weight.scales, rows=3)
    with pytest.raises(ValueError, match="block_terms has shape"):
        BCQWeight(weight.shape, weight.planes, scales)
