"""Machine code as instructions, in one form for every machine (`decoders/`).

What a decoder does not know becomes an instruction of mnemonic `UNKNOWN`: nothing is skipped.
"""

import importlib
from dataclasses import dataclass

UNKNOWN = "unknown"
NEXT, JUMP, BRANCH, CALL, STOP = "next", "jump", "branch", "call", "stop"
NONE: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction.

    `flow` is what follows it; `target` where a direct jump, branch or call goes; `reference` an
    address that it computes or reads at. `vector` says that it touches a vector register (or a mask,
    tile or x87 register). `loaded` and `stored` are bytes of memory; the stack traffic of calls is
    left out. `reads`, `writes` and `addresses` (those that form a memory address) are general registers.
    `operands` is the rest of its assembly, where the decoder reads text (aarch64); `immediate` the number
    in it, where the decoder reads operands (x86-64).
    """

    address: int
    size: int
    mnemonic: str
    flow: str = NEXT
    target: int | None = None
    reference: int | None = None
    vector: bool = False
    loaded: int = 0
    stored: int = 0
    reads: frozenset[str] = NONE
    writes: frozenset[str] = NONE
    addresses: frozenset[str] = NONE
    operands: str = ""
    immediate: int | None = None


def disassemble(content: bytes, address: int, machine: str) -> list[Instruction]:
    """Return the instructions of `content`, whose first byte stands at `address`.

    `machine` is x86_64 or aarch64. Raises `UnsupportedError` where the decoder is not installed.
    """
    decoder = importlib.import_module(f"shiftadd_tvm.decoders.{machine}")
    return list(decoder.decode(content, address))
