"""Which tensors a packed model holds: name -> dtype and shape, from its config alone.

Planner, writer and reader share it, so that what is written is what is expected.

    <linear>.planes | row_terms | plane_terms | block_terms     U8, see bcq.py
    <leader>.column_terms | signs                               U8, once for each shared-input group
    <linear>.bias                                               float, the checkpoint's dtype
    <embedding or head>.weight                                  float, or I8 (rows, hidden) beside
    <embedding or head>.weight_scale                            F32 (rows,): max |row| / 127
    every other tensor under its Hugging Face name              float, the checkpoint's dtype
"""

import abc
import math
from dataclasses import dataclass

from shiftadd_tvm import bcq
from shiftadd_tvm.families import Decoder
from shiftadd_tvm.tensorfile import DTYPES, FLOATS

Shape = tuple[int, ...]
EMBEDDING_DTYPE = {8: ("I8",), 16: FLOATS}


@dataclass(frozen=True)
class CodedLayout(abc.ABC):
    """How linears are coded, whatever they belong to: the tensors that hold their planes and scales."""

    bits: dict[str, int]  # of each linear
    scale_format: str
    rows: int  # of a block that shares a scale, 0 = all
    columns: int
    terms: dict[str, int]
    max_rotation: int  # 0: no rotation

    @abc.abstractmethod
    def linears(self) -> dict[str, Shape]:
        """Return (outputs, inputs) of every quantized linear by its module path, in model order."""

    @abc.abstractmethod
    def groups(self) -> list[tuple[str, ...]]:
        """Return the linears that share an input, the leader first."""

    def leaders(self) -> dict[str, str]:
        """Return the leader of the input group of every linear."""
        return {linear: group[0] for group in self.groups() for linear in group}

    def rotation_block(self, inputs: int) -> int:
        """Return the block of the rotation of a linear with that many inputs, 1 for none."""
        return bcq.rotation_block(inputs, self.max_rotation)

    def block_shape(self, linear: Shape) -> tuple[int, int]:
        """Return (rows, columns) of a block of a linear of that shape, zeros resolved."""
        return self.rows or linear[0], self.columns or linear[1]

    def coded_shapes(self) -> dict[str, Shape]:
        """Return the shape of every U8 tensor of the quantized linears by its name."""
        shapes: dict[str, Shape] = {}
        leaders = self.leaders()
        for linear, shape in self.linears().items():
            for suffix, expected in self._codes(linear, shape, leaders[linear] == linear).items():
                shapes[f"{linear}.{suffix}"] = expected
        return shapes

    def _codes(self, linear: str, shape: Shape, leads: bool) -> dict[str, Shape]:
        (outputs, inputs), bits, terms = shape, self.bits[linear], self.terms
        codes: dict[str, Shape] = {"planes": (bits, outputs, -(-inputs // 8))}
        if self.scale_format == "separable":
            codes["row_terms"] = (outputs, terms["row_terms"])
            codes["plane_terms"] = (bits, terms["plane_terms"])
            if leads:
                codes["column_terms"] = (inputs, terms["column_terms"])
        else:
            rows, columns = self.block_shape(shape)
            blocks = (-(-outputs // rows), -(-inputs // columns))
            codes["block_terms"] = (bits, *blocks, terms["block_terms"])
        if leads and self.rotation_block(inputs) > 1:
            codes["signs"] = (-(-inputs // 8),)
        return codes

    def linear_bytes(self) -> int:
        """Return the bytes of all quantized linears: planes, terms and signs, shared ones once."""
        return sum(math.prod(shape) for shape in self.coded_shapes().values())

    def linear_weights(self) -> int:
        """Return the number of quantized weights."""
        return sum(math.prod(shape) for shape in self.linears().values())

    def effective_bits(self) -> float:
        """Return all bytes of the quantized linears x 8 / their weights."""
        return self.linear_bytes() * 8 / self.linear_weights()

    def nominal_bits(self) -> float | int:
        """Return the parameter-weighted average of the bits, an int if it is whole."""
        sizes = {linear: math.prod(shape) for linear, shape in self.linears().items()}
        average = sum(self.bits[linear] * size for linear, size in sizes.items()) / sum(
            sizes.values()
        )
        return int(average) if average == int(average) else round(average, 4)


@dataclass(frozen=True)
class Layout(CodedLayout):
    """The part of `quantization_config` on which the tensors depend, beside the decoder."""

    decoder: Decoder
    embedding_bits: int

    def linears(self) -> dict[str, Shape]:
        """Return (outputs, inputs) of every quantized linear by its module path, in model order."""
        shapes = self.decoder.linear_shapes()
        blocks = self.decoder.blocks()
        return {f"{block}.{name}": shape for block in blocks for name, shape in shapes.items()}

    def groups(self) -> list[tuple[str, ...]]:
        """Return the linears that share an input, as the family has them."""
        return self.decoder.input_groups()

    def embeddings(self) -> list[str]:
        """Return the module paths of the embedding and, where it is not tied, the head."""
        decoder = self.decoder
        return [decoder.embedding] + ([] if decoder.tied_embeddings else [decoder.head])

    def plain_shapes(self) -> dict[str, Shape]:
        """Return the shape of every other tensor by its name, in model order."""
        coded = {f"{linear}.weight" for linear in self.linears()}
        shapes = self.decoder.tensor_shapes()
        plain = {name: shape for name, shape in shapes.items() if name not in coded}
        if self.embedding_bits == 8:
            for module in self.embeddings():
                plain[f"{module}.weight_scale"] = plain[f"{module}.weight"][:1]
        return plain

    def plain_dtypes(self, name: str) -> tuple[str, ...]:
        """Return the dtypes that an unquantized tensor may have."""
        module, _, suffix = name.rpartition(".")
        if module not in self.embeddings():
            return FLOATS
        return ("F32",) if suffix == "weight_scale" else EMBEDDING_DTYPE[self.embedding_bits]

    def plain_bytes(self, dtypes: dict[str, str]) -> int:
        """Return the bytes of the unquantized tensors, `dtypes` being those of the checkpoint."""
        total = 0
        for name, shape in self.plain_shapes().items():
            allowed = self.plain_dtypes(name)
            dtype = allowed[0] if len(allowed) == 1 else dtypes[name]
            total += math.prod(shape) * DTYPES[dtype].itemsize
        return total
