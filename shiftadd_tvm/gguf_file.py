"""Read a GGUF file: its header whole and validated, its tensors by rows as float32.

    "GGUF", u32 version (2 or 3), u64 tensors, u64 pairs          little-endian throughout
    pairs     string key, u32 type, value (scalar, string, or array: u32 type, u64 count, items)
    tensors   string name, u32 dimensions, u64 each (fastest first), u32 block type, u64 offset
    padding to `general.alignment` (default 32), then the tensors' blocks
    a string is a u64 length and UTF-8

The `gguf` library knows the block types and dequantizes them. Its own reader is not used: it takes
seconds on a vocabulary and trusts every length in the header. What tensors mean is not known here.
"""

import math
import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from shiftadd_tvm.errors import BadFileError, UnsupportedError, UsageError

STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?"}
SCALARS |= {10: "Q", 11: "q", 12: "d"}
MAX_DIMENSIONS = 4
DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies; `shape` in NumPy's order, slowest axis first."""

    shape: tuple[int, ...]
    type_id: int
    offset: int  # from the start of the file
    row_bytes: int


class Cursor:
    """Take values off a buffer from front to back; refuses to run past its end."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data, self.path, self.position = data, path, 0

    def bad(self, what: str) -> BadFileError:
        """Return the error to raise when the header says `what`."""
        return BadFileError(f"{self.path} is not a valid GGUF file: {what}; get it again.")

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes."""
        left = len(self.data) - self.position
        if count > left:
            raise self.bad(f"its header needs {count} bytes at {self.position}, {left} are left")
        self.position += count
        return self.data[self.position - count : self.position]

    def number(self, code: str) -> int:
        """Return the next number of `struct` type `code`."""
        return int(struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0])

    def text(self) -> str:
        """Return the next string; a token may hold broken UTF-8, which is shown as U+FFFD."""
        return self.take(self.number("Q")).decode("utf-8", errors="replace")

    def value(self, type_id: int) -> object:
        """Return the next value of a pair."""
        if type_id == STRING:
            return self.text()
        if type_id == ARRAY:
            return self.array()
        if type_id not in SCALARS:
            raise self.bad(f"a value has the unknown type {type_id}")
        code = "<" + SCALARS[type_id]
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def array(self) -> list[object]:
        """Return the next array of scalars or strings."""
        type_id, count = self.number("I"), self.number("Q")
        if type_id == STRING:
            return [self.text() for _ in range(self.checked(count, 8))]
        if type_id not in SCALARS:
            raise self.bad(f"an array has the unknown element type {type_id}")
        size = struct.calcsize("<" + SCALARS[type_id])
        count = self.checked(count, size)
        return list(struct.unpack(f"<{count}{SCALARS[type_id]}", self.take(count * size)))

    def checked(self, count: int, size: int) -> int:
        """Return `count`, if that many items of at least `size` bytes can still follow."""
        if count * size > len(self.data) - self.position:
            raise self.bad(f"it claims {count} items where its end is near")
        return count


class GgufFile:
    """A GGUF file whose header is read and checked whole at opening.

    Raises `BadFileError` for a damaged file, `UnsupportedError` for block types without a
    dequantizer, `UsageError` where the `gguf` library is not installed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._gguf = _import_gguf(path)
        try:
            self._stream = path.open("rb", buffering=0)
            data = mmap.mmap(self._stream.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
            raise BadFileError(f"{path} cannot be read: {error}.") from None
        with data:
            cursor = Cursor(data, path)
            tensors, pairs = self._preamble(cursor)
            self.metadata = self._pairs(cursor, pairs)
            self._entries = self._table(cursor, tensors)

    def _preamble(self, cursor: Cursor) -> tuple[int, int]:
        if cursor.take(4) != b"GGUF":
            raise cursor.bad("it does not begin with the letters GGUF")
        version = cursor.number("I")
        if version not in (2, 3):
            raise cursor.bad(f"it has version {version}, expected 2 or 3 in little-endian order")
        tensors, pairs = cursor.number("Q"), cursor.number("Q")
        # The least that a tensor or a pair can take.
        return cursor.checked(tensors, 24), cursor.checked(pairs, 13)

    def _pairs(self, cursor: Cursor, count: int) -> dict[str, object]:
        pairs: dict[str, object] = {}
        for _ in range(count):
            key = cursor.text()
            if key in pairs:
                raise cursor.bad(f"it has the key {key} twice")
            pairs[key] = cursor.value(cursor.number("I"))
        return pairs

    def _table(self, cursor: Cursor, count: int) -> dict[str, Entry]:
        rows = [self._row(cursor) for _ in range(count)]
        alignment = self.metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
            raise cursor.bad(f"its alignment is {alignment!r}, expected a power of two")
        begin = -(-cursor.position // alignment) * alignment
        entries: dict[str, Entry] = {}
        for name, shape, type_id, offset in rows:
            if name in entries:
                raise cursor.bad(f"it has the tensor {name} twice")
            entries[name] = self._entry(cursor, name, shape, type_id, begin + offset)
        return entries

    def _row(self, cursor: Cursor) -> tuple[str, tuple[int, ...], int, int]:
        name, dimensions = cursor.text(), cursor.number("I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise cursor.bad(f"tensor {name} has {dimensions} dimensions, expected 1 to 4")
        sizes = [cursor.number("Q") for _ in range(dimensions)]
        return name, tuple(reversed(sizes)), cursor.number("I"), cursor.number("Q")

    def _entry(
        self, cursor: Cursor, name: str, shape: tuple[int, ...], type_id: int, offset: int
    ) -> Entry:
        block, size = self._block(name, type_id)
        if shape[-1] % block:
            raise cursor.bad(f"tensor {name} has rows of {shape[-1]}, expected blocks of {block}")
        entry = Entry(shape, type_id, offset, shape[-1] // block * size)
        needed = offset + math.prod(shape[:-1]) * entry.row_bytes
        if needed > len(cursor.data):
            raise cursor.bad(f"tensor {name} ends at byte {needed}, the file at {len(cursor.data)}")
        return entry

    def _block(self, name: str, type_id: int) -> tuple[int, int]:
        """Return (values, bytes) of a block of the type, if there is a dequantizer for it."""
        try:
            kind = self._gguf.GGMLQuantizationType(type_id)
            block, size = self._gguf.GGML_QUANT_SIZES[kind]
            self._gguf.dequantize(np.zeros((1, size), np.uint8), kind)
        except (ValueError, KeyError, NotImplementedError):
            raise UnsupportedError(
                f"{self.path}: tensor {name} has the block type {type_id}, which the installed "
                "gguf library cannot dequantize; use a file with another quantization."
            ) from None
        return int(block), int(size)

    def __contains__(self, name: str) -> bool:
        """Tell whether a tensor of that name is in the file."""
        return name in self._entries

    def names(self) -> list[str]:
        """Return the sorted tensor names, as GGUF names them."""
        return sorted(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape, [out, in] for a matrix."""
        return self._entries[name].shape

    def type_name(self, name: str) -> str:
        """Return a tensor's block type, such as "Q4_1"."""
        return str(self._gguf.GGMLQuantizationType(self._entries[name].type_id).name)

    def nbytes(self, name: str) -> int:
        """Return the bytes of a tensor's blocks."""
        entry = self._entries[name]
        return math.prod(entry.shape[:-1]) * entry.row_bytes

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Return rows [start, stop) of the first axis as float32; a vector has one-value rows."""
        entry = self._entries[name]
        if len(entry.shape) == 1:
            return self._dequantize(name, 0, 1).reshape(-1)[start:stop].copy()
        inner = math.prod(entry.shape[1:-1])
        values = self._dequantize(name, start * inner, stop * inner)
        return values.reshape(stop - start, *entry.shape[1:])

    def read_stacked(self, name: str, start: int, stop: int) -> np.ndarray:
        """Return rows [start, stop) of a stack of matrices, counted through all of them, as float32."""
        return self._dequantize(name, start, stop)

    def _dequantize(self, name: str, start: int, stop: int) -> np.ndarray:
        """Return [stop - start, last axis] float32 out of the blocks of those innermost rows."""
        entry = self._entries[name]
        count = (stop - start) * entry.row_bytes
        # Read, not mapped: mapped pages would count as this process's memory.
        data = np.empty(count, np.uint8)
        position = 0
        while position < count:  # one call reads 2 GiB at most
            where = entry.offset + start * entry.row_bytes + position
            got = os.preadv(self._stream.fileno(), [data.data[position:]], where)
            if not got:
                raise BadFileError(f"{self.path}: tensor {name} ends early; the file was changed.")
            position += got
        blocks = data.reshape(stop - start, entry.row_bytes)
        if not count:
            return np.zeros((0, entry.shape[-1]), np.float32)
        with np.errstate(all="ignore"):  # NaN and Inf in damaged scales are reported by the caller
            kind = self._gguf.GGMLQuantizationType(entry.type_id)
            values = self._gguf.dequantize(blocks, kind)
        return np.array(values, dtype=np.float32, order="C").reshape(stop - start, -1)


def _import_gguf(path: Path) -> ModuleType:
    try:
        import gguf
    except ImportError:
        raise UsageError(
            f"{path} is a GGUF file, and the library that reads those is not installed: "
            "pip install 'shiftadd-tvm[gguf]'."
        ) from None
    module: ModuleType = gguf
    return module
