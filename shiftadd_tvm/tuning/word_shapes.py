"""What a look-up over planes in whole words (`ops/words.py`) depends on: the tasks of GPUs."""

from dataclasses import dataclass

from tvm.tirx import PrimFunc

from shiftadd_tvm.ops import lut_bits, lut_bytes, words
from shiftadd_tvm.tuning.emitted import emitted, sizes_of

OPS = {f"lut_{read}_query": read for read in lut_bytes.OPERATORS}  # -> what is read of an activation


@dataclass(frozen=True)
class WordShape:
    """One look-up, as `tasks.Shape` is one over planes in bytes."""

    outputs: int
    steps: int  # of the packed order, padded
    bits: int
    tokens: int
    row_terms: int
    plane_terms: int
    bias: bool
    activations: str  # a name of `lut_bits.FORMATS`

    @property
    def form(self) -> lut_bits.Format:
        """How activations are held."""
        return lut_bits.FORMATS[self.activations]

    @property
    def op(self) -> str:
        """The operator's name."""
        return f"lut_{self.read}_query"

    @property
    def read(self) -> str:
        """What is read of an activation."""
        return lut_bytes.read(self.form, self.tokens)

    @property
    def held(self) -> str:
        """The activations in a task's name."""
        return self.activations

    @property
    def inputs(self) -> int:
        """The inputs, padded to whole steps."""
        return self.steps * words.STEP[self.form.order] * words.BITS

    @property
    def nbytes(self) -> int:
        """The bytes of the planes, without padding rows."""
        return self.outputs * self.inputs * self.bits // 8

    def tensors(self, rows: int) -> list[tuple[tuple[int, ...], str]]:
        """Return (shape, dtype) of each argument but the output, for row blocks of `rows`."""
        form = self.form
        built: tuple[int, ...] = {
            "bits": (self.inputs // words.BITS, form.width),
            "tables": (self.steps, lut_bits.GROUPS, 1 << lut_bits.GROUP),
            "bytes": (self.steps, form.digits, 4, 16),
        }[self.read]
        planes = words.shape(self.bits, self.outputs, self.inputs, form.order)
        found: list[tuple[tuple[int, ...], str]] = [
            ((self.tokens, *built), "uint32"),
            ((self.tokens, 1 + form.digits), "uint32"),
            (planes, "uint32"),
            ((planes[0], self.bits, self.plane_terms), "uint8"),
            ((self.row_terms, planes[0] * rows), "uint8"),
        ]
        return found + ([((self.outputs,), "float32")] if self.bias else [])

    def function(self, rows: int) -> PrimFunc:
        """Return the query of this shape as compiling emits it."""
        _, query, _ = lut_bytes.OPERATORS[self.read]
        compute = lambda t, e, p, c, r, *b: query(t, e, p, c, r, self.outputs, self.form, *b)
        return emitted(self.op, compute, self.tensors(rows))


def shape_of(function: PrimFunc, op: str) -> WordShape:
    """Return the shape of a query of that name."""
    (_, scale, planes, *_), common = sizes_of(function)
    held = (OPS[op], scale[1] - 1)
    read = lambda form: lut_bytes.read(form, common["tokens"])
    forms = [f.name for f in lut_bits.FORMATS.values() if (read(f), f.digits) == held]
    return WordShape(steps=planes[1], bits=planes[2], activations=forms[0], **common)
