"""Present a GPTQ or AWQ checkpoint as one of float weights, dequantized tensor by tensor.

    W[n, k] = scales[g, n] (q[n, k] - zero[g, n]),   g = g_idx[k], or k // group_size without g_idx

    GPTQ   qweight I32 (K bits / 32, N)    the codes of an output: bits along K, lowest first
           qzeros  I32 (G, N bits / 32)    bits along N; format "gptq" stores zero - 1, "gptq_v2" zero
           scales  (G, N); g_idx I32 (K)   may be absent
    AWQ    qweight I32 (K, N / 8)          4 bits along N, each 8 outputs in the order ORDER
           qzeros  I32 (G, N / 8)          likewise
           scales  (G, N)

The formats are those of AutoGPTQ and GPTQModel, and of AutoAWQ's GEMM version. What the weights were
before they were rounded is not in the file: the dequantized ones are the reference from then on.
"""

from pathlib import Path

import numpy as np

from shiftadd_tvm.checkpoint_base import FLOATS, Checkpoint
from shiftadd_tvm.errors import BadFileError, UnsupportedError
from shiftadd_tvm.hf_checkpoint import HfCheckpoint

METHODS = ("gptq", "awq")  # quant_method of config.json
GPTQ_FORMATS = {"gptq": 1, "gptq_v2": 0}  # -> what is to be added to the stored zero points
GPTQ_BITS = (2, 3, 4, 8)
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the output whose code is the i-th from below in AWQ's words

Array = np.ndarray


class IntegerCheckpoint(Checkpoint):
    """The float weights that integer codes, zero points and scales stand for."""

    def __init__(self, source: HfCheckpoint) -> None:
        """Check the method that `source` says it was quantized by, and every tensor's shape."""
        self._source, self.path = source, source.path
        fields = source.config["quantization_config"]
        assert isinstance(fields, dict)
        self._method = str(fields.get("quant_method"))
        self.config = {k: v for k, v in source.config.items() if k != "quantization_config"}
        self._bits = self._choice(fields, "bits", GPTQ_BITS if self._method == "gptq" else (4,))
        group = fields.get("group_size", -1)
        if type(group) is not int or (group < 1 and group != -1):
            raise self._bad_field("group_size", group, "a positive number, or -1")
        self._group = group
        self._offset = self._zero_offset(fields)
        self._coded = {
            f"{name.removesuffix('.qweight')}.weight": name.removesuffix(".qweight")
            for name in source.names()
            if name.endswith(".qweight")
        }
        parts = (".qweight", ".qzeros", ".scales", ".g_idx")
        plain = [name for name in source.names() if not name.endswith(parts)]
        self._names = sorted({*plain, *self._coded})
        self._shapes = {name: self._check(module) for name, module in self._coded.items()}

    def _choice(self, fields: dict[str, object], key: str, allowed: tuple[int, ...]) -> int:
        value = fields.get(key)
        if type(value) is not int or value not in allowed:
            raise self._bad_field(key, value, " or ".join(map(str, allowed)))
        return value

    def _bad_field(self, key: str, found: object, expected: str) -> UnsupportedError:
        return UnsupportedError(
            f"{self.path}: its quantization_config (quant_method {self._method!r}) has {key} "
            f"{found!r}, expected {expected}; give the original checkpoint."
        )

    def _zero_offset(self, fields: dict[str, object]) -> int:
        """Return what is to be added to stored zero points; raise for layouts that are not read."""
        if self._method == "awq":
            version = str(fields.get("version") or fields.get("format") or "gemm").lower()
            if version != "gemm":
                raise self._bad_field("version", version, "'gemm'")
            return 0
        form = str(fields.get("checkpoint_format") or fields.get("format") or "gptq")
        if form not in GPTQ_FORMATS:
            raise self._bad_field("checkpoint_format", form, " or ".join(map(repr, GPTQ_FORMATS)))
        return GPTQ_FORMATS[form]

    def _check(self, module: str) -> tuple[int, int]:
        """Return (N, K) of a linear, the shapes of its parts checked against each other."""
        words = self._part_shape(module, "qweight", "I32", 2)
        if self._method == "awq":
            inputs, outputs = words[0], words[1] * 8
        else:
            inputs, outputs = words[0] * 32 // self._bits, words[1]
            whole = words[0] * 32 % self._bits == 0 and outputs * self._bits % 32 == 0
            if not whole:
                raise BadFileError(
                    f"{self.path}: tensor {module}.qweight has shape {list(words)}, expected whole "
                    f"32-bit words of {self._bits}-bit codes along both axes; get it again."
                )
        groups = -(-inputs // (inputs if self._group == -1 else self._group))
        expected: dict[str, tuple[int, ...]] = {
            "scales": (groups, outputs),
            "qzeros": (groups, outputs * self._bits // 32),
        }
        if f"{module}.g_idx" in self._source:
            expected["g_idx"] = (inputs,)
        for part, shape in expected.items():
            dtype = "" if part == "scales" else "I32"
            found = self._part_shape(module, part, dtype, len(shape))
            if found != shape:
                raise BadFileError(
                    f"{self.path}: tensor {module}.{part} has shape {list(found)}, expected "
                    f"{list(shape)} by {module}.qweight and its quantization_config; get it again."
                )
        return outputs, inputs

    def _part_shape(self, module: str, part: str, dtype: str, axes: int) -> tuple[int, ...]:
        name = f"{module}.{part}"
        if name not in self._source:
            raise BadFileError(
                f"{self.path} holds no tensor {name}, which belongs to {module}.qweight; "
                "get the whole checkpoint again."
            )
        shape, found = self._source._shape(name), self._source._dtype(name)
        if found not in ((dtype,) if dtype else FLOATS) or len(shape) != axes:
            raise BadFileError(
                f"{self.path}: tensor {name} is {found} {list(shape)}, expected "
                f"{dtype or 'floats'} with {axes} axes; get it again."
            )
        return shape

    def __contains__(self, name: str) -> bool:
        """Tell whether a tensor of that name is there."""
        return name in self._coded or (name in self._source and name in self._names)

    def names(self) -> list[str]:
        """Return the sorted tensor names, as those of the float model."""
        return self._names

    def tokenizer_files(self) -> dict[str, bytes]:
        """Return the source's tokenizer files."""
        return self._source.tokenizer_files()

    def stored_as(self) -> str:
        """Return what the weights are stored as."""
        groups = "whole rows" if self._group == -1 else f"groups of {self._group}"
        return f"{self._method.upper()}, {self._bits} bits in {groups}"

    def stored_bytes(self, name: str) -> int:
        """Return the bytes of codes, zero points, scales and group indices."""
        if name not in self._coded:
            return self._source.stored_bytes(name)
        parts = ("qweight", "qzeros", "scales", "g_idx")
        names = [f"{self._coded[name]}.{part}" for part in parts]
        return sum(self._source.stored_bytes(part) for part in names if part in self._source)

    def _shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name] if name in self._coded else self._source._shape(name)

    def _dtype(self, name: str) -> str:
        if name not in self._coded:
            return self._source._dtype(name)
        return self._source._dtype(f"{self._coded[name]}.scales")

    def _files(self) -> list[Path]:
        return self._source._files()

    def _rows(self, name: str, start: int, stop: int) -> Array:
        if name not in self._coded:
            return self._source._rows(name, start, stop)
        module, inputs = self._coded[name], self._shapes[name][1]
        words, zeros = (self._source.raw(f"{module}.{part}") for part in ("qweight", "qzeros"))
        scales = self._source.read(f"{module}.scales")[:, start:stop]
        if self._method == "awq":
            codes, zeros = (_awq_codes(part, start, stop) for part in (words, zeros))
        else:
            codes = _unpack(words[:, start:stop].T, self._bits, inputs).T
            zeros = _unpack(zeros, self._bits, self._shapes[name][0])[:, start:stop]
            zeros = (zeros + self._offset) & ((1 << self._bits) - 1)  # 0 is stored as all ones
        group = self._group_of(module, inputs, len(scales))
        values = (codes.astype(np.float32) - zeros.astype(np.float32)[group]) * scales[group]
        return np.ascontiguousarray(values.T)

    def _group_of(self, module: str, inputs: int, groups: int) -> Array:
        """Return the group of every input, (K,)."""
        if f"{module}.g_idx" not in self._source:
            return np.arange(inputs) // (inputs if self._group == -1 else self._group)
        found = self._source.raw(f"{module}.g_idx")
        if found.min(initial=0) < 0 or found.max(initial=0) >= groups:
            raise BadFileError(
                f"{self.path}: tensor {module}.g_idx holds {found.min()} to {found.max()}, "
                f"expected 0 to {groups - 1}; get it again."
            )
        return found


def _unpack(words: Array, bits: int, count: int) -> Array:
    """Return uint8 (rows, count) out of int32 words (rows, count bits / 32): `bits` each, in one
    stream along the last axis, lowest first."""
    stream = np.ascontiguousarray(words).view(np.uint8)
    flags = np.unpackbits(stream, axis=-1, bitorder="little").reshape(len(words), count, bits)
    weights = (1 << np.arange(bits)).astype(np.uint8)
    codes: Array = (flags * weights).sum(axis=-1, dtype=np.uint8)
    return codes


def _awq_codes(words: Array, start: int, stop: int) -> Array:
    """Return columns [start, stop) of uint8 (rows, N) out of AWQ's int32 words (rows, N / 8)."""
    first, last = start // 8, -(-stop // 8)
    stored = _unpack(words[:, first:last], 4, 8 * (last - first)).reshape(len(words), -1, 8)
    codes = np.empty_like(stored)
    codes[..., ORDER] = stored
    return codes.reshape(len(words), -1)[:, start - first * 8 : stop - first * 8]
