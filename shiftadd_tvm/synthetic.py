"""A packed model of a published shape with made-up weights, for benches: nothing is on disk.

Planes and 8-bit embeddings are cut out of one pool of random bytes, each at an offset of its own, so
that a model of any size costs the memory of its largest tensor; scales are random powers of two around
1 / sqrt(inputs), so that activations stay finite through any number of blocks. Whatever reads a packed
model reads this one, tensor by tensor; there is neither a tokenizer nor a golden file, since there is
nothing true to compare with.
"""

import math
import zlib
from pathlib import Path

import numpy as np

from shiftadd_tvm import families
from shiftadd_tvm.families import Config
from shiftadd_tvm.packed import PackedModel
from shiftadd_tvm.packed_config import make_layout, write_config
from shiftadd_tvm.packed_layout import Layout, Shape
from shiftadd_tvm.powers import EXPONENT_BIAS, NEGATIVE
from shiftadd_tvm.settings import QuantizeSettings
from shiftadd_tvm.tensorfile import to_float32

OFFSETS = 1 << 16  # places in the pool where a tensor may begin
HALF_BITS = 16  # of a weight, where linears are not coded
TYPICAL = 73.0  # root mean square of a random int8

Array = np.ndarray


class SyntheticModel(PackedModel):
    """A packed model whose tensors are made up when they are read; the same each time."""

    def __init__(self, config: Config, settings: QuantizeSettings) -> None:
        """Make up a model of a Hugging Face `config`; raises what `families.read_config` raises."""
        self.path = Path("synthetic")
        self.decoder = families.read_config(config)
        self.layout = make_layout(self.decoder, settings)
        self.quantization = write_config(self.layout, settings)
        self.config = {**config, "quantization_config": self.quantization}
        tensors = _MadeUp(self.layout, settings.seed)
        self._files = dict.fromkeys(tensors.shapes, tensors)
        self._groups = {name: group for group in self.layout.groups() for name in group}
        self._golden = None

    def tokenizer_files(self) -> dict[str, bytes]:
        """Return no file."""
        return {}


class HalfModel(SyntheticModel):
    """The same shape with all matrices in float16, none coded: what a bench compares with."""

    stored = "F16"

    def __init__(self, config: Config) -> None:
        """Make up a model of a Hugging Face `config`; raises what `families.read_config` raises."""
        super().__init__(config, QuantizeSettings())
        self.quantization = {**self.quantization, "bits": HALF_BITS}
        tensors = _MadeUpHalves(self.layout, 0)
        self._files = dict.fromkeys(tensors.shapes, tensors)

    def linear_bytes(self) -> int:
        """Return the bytes of all linears."""
        return sum(math.prod(shape) for shape in self.layout.linears().values()) * HALF_BITS // 8

    def effective_bits(self) -> float:
        """Return 16."""
        return HALF_BITS


class _MadeUp:
    """The tensors of a layout, in the place of its files."""

    def __init__(self, layout: Layout, seed: int) -> None:
        self.shapes: dict[str, Shape] = layout.coded_shapes() | layout.plain_shapes()
        self._layout, self._seed = layout, seed
        self._inputs = {
            f"{linear}.row_terms": shape[1] for linear, shape in layout.linears().items()
        }
        largest = max(math.prod(shape) for name, shape in self.shapes.items() if _random(name))
        rng = np.random.Generator(np.random.SFC64(seed))
        self._pool = np.frombuffer(rng.bytes(largest + OFFSETS), np.uint8)

    def shape(self, name: str) -> Shape:
        return self.shapes[name]

    def dtype(self, name: str) -> str:
        if name.endswith("_terms") or name.endswith((".planes", ".signs")):
            return "U8"
        return "I8" if _random(name) else "F32"

    def release(self) -> None:
        """Keep the pool: there is no file to read it from again."""

    def read_rows(self, name: str, start: int, stop: int) -> Array:
        return to_float32(self.raw(name)[start:stop], self.dtype(name))

    def raw(self, name: str) -> Array:
        shape, suffix = self.shapes[name], name.rpartition(".")[2]
        if _random(name) or suffix == "signs":
            begin = zlib.crc32(name.encode()) % OFFSETS
            piece = self._pool[begin : begin + math.prod(shape)].reshape(shape)
            return piece.view(np.int8) if self.dtype(name) == "I8" else piece
        if suffix.endswith("_terms"):
            return self._terms(name, shape)
        level = 1 / (TYPICAL * math.sqrt(self._layout.decoder.hidden))
        return np.full(shape, level if suffix == "weight_scale" else 1, np.float32)

    def _terms(self, name: str, shape: Shape) -> Array:
        """Return term bytes whose later terms are smaller and of either sign."""
        rng = np.random.default_rng([self._seed, zlib.crc32(name.encode())])
        if name.endswith("row_terms"):
            first = rng.integers(-1, 1, shape[:1]) - round(math.log2(self._inputs[name]) / 2)
        elif name.endswith("column_terms"):
            first = rng.integers(-1, 1, shape[:1])
        else:  # of the planes: a half, a quarter, ... and so of their blocks
            first = -1 - np.arange(shape[0]).reshape(-1, *(1,) * (len(shape) - 2))
        terms = np.empty(shape, np.uint8)
        for index in range(shape[-1]):
            terms[..., index] = first - 2 * index + EXPONENT_BIAS
            if index:
                terms[..., index] |= NEGATIVE * rng.integers(0, 2, shape[:-1], np.uint8)
        return terms


class _MadeUpHalves(_MadeUp):
    """The same, but for matrices: numbers of 2^-6 to 2^-5 and of either sign."""

    def __init__(self, layout: Layout, seed: int) -> None:
        self._layout, self._seed = layout, seed
        linears = {f"{name}.weight": shape for name, shape in layout.linears().items()}
        self.shapes = linears | layout.plain_shapes()
        self._matrices = {*linears, *filter(_random, self.shapes)}
        largest = max(math.prod(self.shapes[name]) for name in self._matrices)
        rng = np.random.Generator(np.random.SFC64(seed))
        self._pool = np.frombuffer(rng.bytes(2 * largest + OFFSETS), np.uint8)

    def dtype(self, name: str) -> str:
        return "F16" if name in self._matrices else super().dtype(name)

    def raw(self, name: str) -> Array:
        if name not in self._matrices:
            return super().raw(name)
        begin, shape = zlib.crc32(name.encode()) % OFFSETS & ~1, self.shapes[name]
        bits = self._pool[begin : begin + 2 * math.prod(shape)].view(np.uint16)
        return (bits & 0x83FF | 0x2400).view(np.float16).reshape(shape)


def _random(name: str) -> bool:
    """Tell whether a tensor is cut out of the pool: planes and 8-bit matrices."""
    return name.endswith((".planes", "embed_tokens.weight", "lm_head.weight"))
