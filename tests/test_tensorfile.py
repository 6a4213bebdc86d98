"""safetensors: round trips, agreement with the safetensors library, and hostile files by name."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from shiftadd_tvm.errors import BadFileError
from shiftadd_tvm.tensorfile import (
    ALIGNMENT,
    DTYPES,
    Source,
    TensorFile,
    from_float32,
    stream_tensors,
    to_float32,
    write_tensors,
)


def random_raw(dtype: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    kind, rng = DTYPES[dtype], np.random.default_rng(seed)
    if kind.kind == "b":
        return rng.random(shape) < 0.5
    return rng.integers(0, 120, shape).astype(kind)


def every_dtype() -> list[tuple[str, str, np.ndarray]]:
    shapes = [(3, 5), (), (0,), (1,), (2, 0, 3), (7,), (4, 1, 2)]
    return [
        (f"t.{dtype}", dtype, random_raw(dtype, shapes[index % len(shapes)], index))
        for index, dtype in enumerate(DTYPES)
    ]


def test_round_trip_of_every_dtype(tmp_path: Path) -> None:
    tensors = every_dtype()
    write_tensors(tmp_path / "a.safetensors", tensors, {"format": "pt", "ü": "ß"})
    file = TensorFile(tmp_path / "a.safetensors")
    assert file.metadata == {"format": "pt", "ü": "ß"}
    assert file.names() == sorted(name for name, _, _ in tensors)
    for name, dtype, raw in tensors:
        assert name in file and (file.dtype(name), file.shape(name)) == (dtype, raw.shape)
        assert file.nbytes(name) == raw.nbytes
        np.testing.assert_array_equal(file.raw(name), raw)
        np.testing.assert_array_equal(file.read(name), to_float32(raw, dtype))
    assert "other" not in file


def test_rows(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    write_tensors(tmp_path / "a", [("w", "BF16", from_float32(values, "BF16"))])
    np.testing.assert_array_equal(TensorFile(tmp_path / "a").read_rows("w", 1, 3), values[1:3])


def test_data_begin_aligned_and_bytes_repeat(tmp_path: Path) -> None:
    for length in range(1, 80):
        name, first, second = "n" * length, tmp_path / "first", tmp_path / "second"
        for path in (first, second):
            write_tensors(path, [(name, "U8", np.arange(64, dtype=np.uint8))])
        header = int.from_bytes(first.read_bytes()[:8], "little")
        assert (8 + header) % ALIGNMENT == 0
        assert first.read_bytes() == second.read_bytes()


def test_sources_are_read_one_at_a_time_in_order(tmp_path: Path) -> None:
    seen: list[str] = []

    def source(name: str) -> Source:
        def read() -> np.ndarray:
            seen.append(name)
            return np.full((2, 2), len(seen), np.float32)

        return Source(name, "F32", (2, 2), read)

    stream_tensors(tmp_path / "a", [source(name) for name in "cab"])
    assert seen == list("cab")
    assert TensorFile(tmp_path / "a").raw("a")[0, 0] == 2


def test_a_writable_copy_never_reaches_the_file(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a", [("x", "U8", np.zeros(8, np.uint8))])
    before = (tmp_path / "a").read_bytes()
    TensorFile(tmp_path / "a", writable_copy=True).raw("x")[...] = 9
    assert (tmp_path / "a").read_bytes() == before
    with pytest.raises(ValueError, match="read-only"):
        TensorFile(tmp_path / "a").raw("x")[...] = 9


# --- bfloat16 ---------------------------------------------------------------------------------


def nearest_bfloat16(value: float) -> float:
    """Return the nearest bfloat16 by exact arithmetic, half to even."""
    if value == 0 or not np.isfinite(value):
        return value
    unit = 2.0 ** (max(int(np.floor(np.log2(abs(value)))), -126) - 7)
    rounded = round(value / unit) * unit  # Python rounds half to even
    return rounded if abs(rounded) < 2.0**128 else float(np.copysign(np.inf, value))


@settings(max_examples=300, derandomize=True, deadline=None, database=None)
@given(st.floats(width=32, allow_nan=False))
def test_bfloat16_rounds_to_nearest_even(value: float) -> None:
    found = to_float32(from_float32(np.array([value], np.float32), "BF16"), "BF16")[0]
    assert found == np.float32(nearest_bfloat16(value))
    assert np.signbit(found) == np.signbit(value)


def test_every_nan_stays_nan_in_bfloat16() -> None:
    bits = [0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0xFF800001]
    values = np.array(bits, np.uint32).view(np.float32)
    assert np.isnan(to_float32(from_float32(values, "BF16"), "BF16")).all()


# --- the safetensors library -----------------------------------------------------------------

SHARED = [dtype for dtype in DTYPES if dtype != "BF16"]


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    tensors = [entry for entry in every_dtype() if entry[1] in SHARED]
    write_tensors(tmp_path / "a", tensors, {"k": "v"})
    loaded = safetensors.numpy.load_file(tmp_path / "a")
    assert sorted(loaded) == sorted(name for name, _, _ in tensors)
    for name, _, raw in tensors:
        assert loaded[name].dtype == raw.dtype and loaded[name].shape == raw.shape
        np.testing.assert_array_equal(loaded[name], raw)


def test_we_read_what_the_library_writes(tmp_path: Path) -> None:
    tensors = {name: raw for name, dtype, raw in every_dtype() if dtype in SHARED}
    safetensors.numpy.save_file(tensors, tmp_path / "a", {"k": "v"})
    file = TensorFile(tmp_path / "a")
    assert file.metadata == {"k": "v"} and file.names() == sorted(tensors)
    for name, raw in tensors.items():
        np.testing.assert_array_equal(file.raw(name), raw)


# --- hostile files ----------------------------------------------------------------------------

ENTRY = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}


def blob(header: object, data: bytes = b"\0\0\0\0", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(**changes: object) -> dict[str, object]:
    return {"x": {**ENTRY, **changes}}


ATTACKS: dict[str, bytes] = {
    "empty file": b"",
    "seven bytes": b"\1\0\0\0\0\0\0",
    "header longer than the file": blob(entry(), length=10_000),
    "header of 2^64 bytes": blob(entry(), length=2**64 - 1),
    "header over the format's limit": blob(entry(), length=100_000_001),
    "header cut short": blob(entry(), length=20),
    "no header": blob(b""),
    "not JSON": blob(b"pickle me"),
    "not UTF-8": blob(b'{"\xff": 1}'),
    "a list": blob([]),
    "a number": blob(b"7"),
    "deeply nested lists": blob(b"[" * 100_000),
    "deeply nested entry": blob(b'{"x":' + b"[" * 900 + b"]" * 900 + b"}"),
    "deeply nested shape": blob(
        b'{"x":{"dtype":"U8","data_offsets":[0,4],"shape":' + b"[" * 900 + b"]" * 900 + b"}}"
    ),
    "a number of 5000 digits": blob(b'{"x": ' + b"9" * 5000 + b"}"),
    "shape of 5000 digits": blob(
        b'{"x":{"dtype":"U8","data_offsets":[0,4],"shape":[' + b"9" * 5000 + b"]}}"
    ),
    "metadata not an object": blob({"__metadata__": [], **entry()}),
    "metadata not strings": blob({"__metadata__": {"a": 1}, **entry()}),
    "entry not an object": blob({"x": 3}),
    "entry empty": blob({"x": {}}),
    "dtype unknown": blob(entry(dtype="F9")),
    "control characters in a name": blob({"\x1b[2J\n" * 100: {}}),
    "dtype a list": blob(entry(dtype=["U8"])),
    "dtype an object": blob(entry(dtype={})),
    "dtype null": blob(entry(dtype=None)),
    "shape negative": blob(entry(shape=[-4])),
    "shape twice negative": blob(entry(shape=[-2, -2])),
    "shape of floats": blob(entry(shape=[4.0])),
    "shape of booleans": blob(entry(shape=[True, 4])),
    "shape not a list": blob(entry(shape=4)),
    "shape overflows": blob(entry(shape=[2**61, 2**61])),
    "shape overflows to zero": blob(entry(shape=[2**32, 2**32])),
    "empty shape with huge sides": blob(
        {"x": {"dtype": "F32", "shape": [0, 2**61, 2**61], "data_offsets": [0, 0]}}, b""
    ),
    "a hundred dimensions": blob(entry(shape=[1] * 99 + [4])),
    "offsets backwards": blob(entry(data_offsets=[4, 0])),
    "offsets past the end": blob(entry(data_offsets=[0, 5], shape=[5])),
    "offsets negative": blob(entry(data_offsets=[-4, 0])),
    "offsets of three": blob(entry(data_offsets=[0, 2, 4])),
    "offsets missing": blob({"x": {"dtype": "U8", "shape": [4]}}),
    "size does not fit dtype": blob(entry(dtype="F32")),
    "tensors overlap": blob({**entry(), "y": ENTRY}),
    "a hole before the first": blob(entry(data_offsets=[1, 5]), b"\0" * 5),
    "a hole between": blob({**entry(), "y": {**ENTRY, "data_offsets": [5, 9]}}, b"\0" * 9),
    "bytes after the last": blob(entry(), b"\0" * 5),
    "data cut short": blob(entry(), b"\0" * 3),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attack(tmp_path: Path, name: str) -> None:
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(ATTACKS[name])
    with pytest.raises(BadFileError) as caught:
        TensorFile(path)
    assert "hostile.safetensors" in str(caught.value)
    text = str(caught.value).replace(str(tmp_path), "")
    assert len(text) < 400 and text.isprintable(), "what a file says must not reach a terminal raw"


def test_the_attacks_start_from_a_valid_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(blob(entry()))
    assert TensorFile(tmp_path / "a").raw("x").tolist() == [0, 0, 0, 0]


def missing(path: Path) -> None:
    pass


def folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("make", [missing, folder])
def test_no_file(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "gone")
    with pytest.raises(BadFileError, match="gone"):
        TensorFile(tmp_path / "gone")


def use(path: Path) -> None:
    """Read everything of a file that was accepted: that must not fail any more."""
    file = TensorFile(path)
    for name in file.names():
        assert file.raw(name).shape == file.shape(name)
        file.read(name)


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("intact") / "a"
    write_tensors(path, every_dtype(), {"format": "pt"})
    return path.read_bytes()


@settings(max_examples=400, derandomize=True, deadline=None, database=None)
@given(data=st.data())
def test_damage_is_found_or_harmless(
    data: st.DataObject, intact: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    damaged = bytearray(intact)
    header = int.from_bytes(intact[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, 8 + header - 1))
        damaged[place] ^= data.draw(st.integers(1, 255))
    if data.draw(st.booleans()):
        del damaged[data.draw(st.integers(0, len(damaged))) :]
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(damaged)
    try:
        use(path)
    except BadFileError:
        pass
