"""What can be read in the PTX and the machine code of kernels without a GPU."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from shiftadd_tvm.cuda import toolkit

ENTRY = re.compile(r"\.entry (\w+)\(.*?\)\s*(?:\.\w+ [^\n]*\s*)*\{(.*?)\n\}", re.S)
LINE = re.compile(r"^\s*(?:@!?%p\d+\s+)?([a-z][\w.:]*)\s+(.*);", re.M)
REGISTER = re.compile(r"%[a-z]+\d+")
# their results are data, or decide nothing about data
ENDS = ("bra", "setp", "bar", "ret", "membar", "fence")


def kernels(ptx: str) -> dict[str, str]:
    """Return the bodies of all kernels by name."""
    return dict(ENTRY.findall(ptx))


def _instructions(body: str) -> Iterator[tuple[str, list[str]]]:
    for opcode, operands in LINE.findall(body):
        yield opcode, [part.strip() for part in re.split(r",(?![^{\[]*[}\]])", operands)]


def float_products(body: str) -> list[str]:
    """Return the instructions that multiply or divide floating-point numbers."""
    pattern = re.compile(r"(mul|fma|mad|div|rcp|sqrt|rsqrt)\.\S*f(16|32|64)")
    return [opcode for opcode, _ in _instructions(body) if pattern.match(opcode)]


def products_of_data(body: str) -> list[str]:
    """Return what uses, other than as an address, a value that a product of whole numbers went into.

    Registers are followed from every product on; an operand in brackets is an address and ends the path.
    """
    lines, tainted, found = list(_instructions(body)), set[str](), set[str]()
    grown = True
    while grown:
        before = len(tainted)
        for opcode, operands in lines:
            kind = opcode.split(".")[0]
            sources = {r for o in operands[1:] for r in REGISTER.findall(o) if not o.startswith("[")}
            stores = kind in ("st", "red", "atom")
            product = kind in ("mul", "mad") and not stores
            if kind in ENDS:
                continue
            if stores or kind in ("mma", "shfl", "vote", "cvt") and ".f" in opcode:
                if sources & tainted:
                    found.add(f"{opcode} {', '.join(operands)}")
            elif product or (sources & tainted and kind not in ("ld", "mma")):
                tainted |= set(REGISTER.findall(operands[0]))
            elif kind == "mma" and sources & tainted:
                found.add(f"{opcode} {', '.join(operands)}")
        grown = len(tainted) > before
    return sorted(found)


def machine_code(cubin: bytes, folder: Path) -> dict[str, list[str]]:
    """Return the instructions of each kernel of a cubin, by NVIDIA's disassembler."""
    program = toolkit.find().headers.parent / "bin" / "nvdisasm"
    path = folder / "kernels.cubin"
    path.write_bytes(cubin)
    listing = subprocess.run([program, "-c", path], capture_output=True, text=True, check=True).stdout
    found: dict[str, list[str]] = {}
    for part in re.split(r"\n\s*\.section\s+\.text\.", listing)[1:]:
        name = part.split(",")[0].strip()
        code = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(.*?);", part)
        found[name] = code
    return found
