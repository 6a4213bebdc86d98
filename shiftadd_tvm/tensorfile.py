"""Read and write safetensors files: mapped, validated whole before use, reproducible bytes.

    8 bytes   header length H, little-endian unsigned
    H bytes   JSON {"<name>": {"dtype", "shape", "data_offsets": [begin, end]}, ...,
                    "__metadata__": {str: str}}
    rest      tensor bytes, little-endian, row-major, in the order of their offsets, without gaps

Both file contracts use it. The `safetensors` library reads and writes NumPy arrays in memory; this
reader adds what the contracts need beyond that: bfloat16 without a torch dtype, zero-copy maps,
rows of a tensor, streaming writes, and a header padded so that the data begin at a multiple of
`ALIGNMENT`. It does not know what any tensor means.
"""

import json
import math
import mmap
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import numpy as np

from shiftadd_tvm.errors import BadFileError, UnsupportedError

ALIGNMENT = 64
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format itself
MAX_DIMENSIONS = 32  # the limit of NumPy 1
MAX_QUOTE = 300  # characters of a message

# safetensors dtype -> NumPy dtype of the raw view (bfloat16 has none, its bits are shown)
DTYPES = {
    "BOOL": np.dtype("?"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}
# dtypes of the format without a NumPy form, refused by the name that people know
SMALL_FLOATS = {"F8_E4M3": "FP8", "F8_E5M2": "FP8", "F8_E8M0": "FP8", "F4": "FP4"}
FLOATS = ("F16", "BF16", "F32", "F64")

Array = np.ndarray  # any dtype: each use states its own


def to_float32(raw: Array, dtype: str) -> Array:
    """Return `raw` (the bits of safetensors `dtype`) as a C-contiguous float32 copy."""
    if dtype == "BF16":
        return (raw.astype(np.uint32) << 16).view(np.float32)
    return np.array(raw, dtype=np.float32, order="C")


def from_float32(values: Array, dtype: str) -> Array:
    """Return float32 `values` as the raw array of safetensors `dtype`, rounded to nearest even."""
    values = np.asarray(values, dtype=np.float32, order="C")
    if dtype != "BF16":
        return values.astype(DTYPES[dtype])
    bits = values.view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype(np.uint16)


class TensorFile:
    """A safetensors file, mapped read-only (or copy-on-write) and validated whole at opening.

    Raises `BadFileError` when the file is missing, truncated, oversized or malformed,
    `UnsupportedError` for FP8 and FP4.
    """

    def __init__(self, path: str | Path, *, writable_copy: bool = False) -> None:
        """Map `path`; with `writable_copy` the pages are private and writable, never the file."""
        self.path = Path(path)
        self._private = writable_copy
        access = mmap.ACCESS_COPY if writable_copy else mmap.ACCESS_READ
        try:
            self._stream = self.path.open("rb", buffering=0)
            self._map = mmap.mmap(self._stream.fileno(), 0, access=access)
        except FileNotFoundError:
            raise BadFileError(f"{self.path} does not exist.") from None
        except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
            raise BadFileError(f"{self.path} cannot be read: {error}.") from None
        self._begin, header = self._header()
        self.metadata = self._metadata(header)
        self._entries = {name: self._entry(name, entry) for name, entry in header.items()}
        self._check_layout()

    def _bad(self, what: str) -> BadFileError:
        # `what` quotes the file: neither its length nor its control characters reach a terminal
        what = "".join(c if c.isprintable() else "?" for c in what[:MAX_QUOTE])
        return BadFileError(f"{self.path} is not a valid safetensors file: {what}; get it again.")

    def _header(self) -> tuple[int, dict[str, object]]:
        size = len(self._map)
        length = int.from_bytes(self._map[:8], "little") if size >= 8 else 0
        if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
            raise self._bad(f"its header claims {length} bytes, the file has {size}")
        try:
            header = json.loads(self._map[8 : 8 + length].decode("utf-8"))
        except (ValueError, RecursionError):  # ValueError: also of a number with too many digits
            raise self._bad("its header is not JSON") from None
        if not isinstance(header, dict):
            raise self._bad("its header is not a JSON object")
        return 8 + length, header

    def _metadata(self, header: dict[str, object]) -> dict[str, str]:
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
            raise self._bad("its __metadata__ does not map names to strings")
        return metadata

    def _entry(self, name: str, entry: object) -> tuple[str, tuple[int, ...], int, int]:
        fields = entry if isinstance(entry, dict) else {}
        dtype, shape, span = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
        if isinstance(dtype, str) and dtype in SMALL_FLOATS:
            raise UnsupportedError(
                f"{self.path}: tensor {name[:MAX_QUOTE]} is {SMALL_FLOATS[dtype]} ({dtype}), which "
                "is not read; give a checkpoint with bfloat16, float16 or float32 weights."
            )
        if not isinstance(dtype, str) or dtype not in DTYPES:
            known = ", ".join(DTYPES)
            raise self._bad(f"tensor {name} has dtype {dtype!r}, expected one of {known}")
        if not _is_shape(shape) or not _is_sizes(span) or len(span) != 2:
            raise self._bad(f"tensor {name} has shape {shape!r} and offsets {span!r}")
        expected = math.prod(shape) * DTYPES[dtype].itemsize
        if span[1] - span[0] != expected:
            found = span[1] - span[0]
            raise self._bad(f"tensor {name} needs {expected} bytes for its shape, has {found}")
        return dtype, tuple(shape), span[0], span[1]

    def _check_layout(self) -> None:
        position = 0
        for name, (_, _, begin, end) in sorted(self._entries.items(), key=lambda item: item[1][2:]):
            if begin != position:
                raise self._bad(f"tensor {name} begins at {begin}, expected {position}")
            position = end
        found = len(self._map) - self._begin
        if found != position:
            raise self._bad(f"its tensors need {position} bytes, the file holds {found}")

    def names(self) -> list[str]:
        """Return the sorted tensor names."""
        return sorted(self._entries)

    def __contains__(self, name: str) -> bool:
        """Tell whether a tensor of that name is in the file."""
        return name in self._entries

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return self._entries[name][1]

    def dtype(self, name: str) -> str:
        """Return the safetensors dtype name of a tensor, such as "BF16"."""
        return self._entries[name][0]

    def nbytes(self, name: str) -> int:
        """Return the stored size of a tensor in bytes."""
        _, _, begin, end = self._entries[name]
        return end - begin

    def raw(self, name: str) -> Array:
        """Return a zero-copy view; bfloat16 is shown as uint16 bits."""
        dtype, shape, begin, _ = self._entries[name]
        count = math.prod(shape)
        view = np.frombuffer(self._map, DTYPES[dtype], count, self._begin + begin)
        return view.reshape(shape)

    def read(self, name: str) -> Array:
        """Return a tensor as a float32 copy."""
        return self.read_rows(name, 0, None)

    def read_rows(self, name: str, start: int, stop: int | None) -> Array:
        """Return rows [start, stop) of the first axis as a float32 copy; the rest stays unread."""
        raw, dtype = self.read_raw(name, start, stop), self.dtype(name)
        return raw if dtype == "F32" else to_float32(raw, dtype)

    def read_raw(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Return a copy of a tensor, or of its rows [start, stop), as `raw` shows it.

        It is read, not mapped: mapped pages would count as this process's memory until it ends.
        """
        dtype, shape, begin, _ = self._entries[name]
        if shape:
            start, stop, _ = slice(start, stop).indices(shape[0])
            shape = (max(stop - start, 0), *shape[1:])
        values = np.empty(shape, DTYPES[dtype])
        row_bytes = math.prod(shape[1:]) * values.itemsize
        where = self._begin + begin + start * row_bytes
        data, position = values.reshape(-1).view(np.uint8), 0
        while position < data.size:  # one call reads 2 GiB at most
            got = os.preadv(self._stream.fileno(), [data[position:].data], where + position)
            if not got:
                raise BadFileError(f"{self.path}: tensor {name} ends early; the file was changed.")
            position += got
        return values

    def release(self) -> None:
        """Give the pages back that were read through `raw`; what is used again is read again."""
        if hasattr(mmap, "MADV_DONTNEED") and not self._private:  # private ones may be written to
            self._map.madvise(mmap.MADV_DONTNEED)


def _is_sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 1 << 62 for v in value)


def _is_shape(value: object) -> TypeGuard[list[int]]:
    if not _is_sizes(value) or len(value) > MAX_DIMENSIONS:
        return False
    return math.prod(size or 1 for size in value) < 1 << 60  # NumPy forms strides of empty ones too


@dataclass(frozen=True)
class Source:
    """A tensor to be written: what the header says of it, and how to get its raw array."""

    name: str
    dtype: str  # of safetensors
    shape: tuple[int, ...]
    read: Callable[[], Array]


def write_tensors(
    path: str | Path,
    tensors: Iterable[tuple[str, str, Array]],
    metadata: dict[str, str] | None = None,
) -> None:
    """Write (name, safetensors dtype, raw array) triples, in the order given, to `path`."""
    sources = [Source(n, dtype, array.shape, lambda a=array: a) for n, dtype, array in tensors]  # type: ignore[misc]
    stream_tensors(path, sources, metadata)


def stream_tensors(
    path: str | Path, sources: Sequence[Source], metadata: dict[str, str] | None = None
) -> None:
    """Write `sources` in the order given, one in memory at a time.

    The header is padded with spaces so that the data begin at a multiple of `ALIGNMENT`; a caller
    who also pads every tensor to such a multiple gets every tensor aligned. Same input, same bytes.
    """
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    position = 0
    for source in sources:
        end = position + math.prod(source.shape) * DTYPES[source.dtype].itemsize
        span = [position, end]
        header[source.name] = {
            "dtype": source.dtype,
            "shape": list(source.shape),
            "data_offsets": span,
        }
        position = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    with Path(path).open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for source in sources:
            array = np.asarray(source.read(), order="C")
            assert (array.shape, array.dtype) == (source.shape, DTYPES[source.dtype]), source.name
            stream.write(array.reshape(-1).view(np.uint8).data if array.size else b"")
