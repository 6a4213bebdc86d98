"""Decode aarch64 (NEON, SVE) by capstone, whose tables are LLVM's.

Operands are read from the text, since capstone states registers for few of the newer extensions.
"""

import re
from collections.abc import Iterator

from shiftadd_tvm.disassembly import BRANCH, CALL, JUMP, NEXT, STOP, UNKNOWN, Instruction
from shiftadd_tvm.machine_code import require

GENERAL = re.compile(r"\b[xw](\d+)\b")
WIDE = re.compile(r"\b(?:[vqdshbz]\d+|p\d+)\b")
SCALABLE = 16  # bytes of an SVE register at the least
PLAIN = {"x": 8, "w": 4, "q": 16, "d": 8, "s": 4, "h": 2, "b": 1, "z": SCALABLE}
LISTED = re.compile(r"\b[vz]\d+\.(\d*)([bhsdq])")
ELEMENT = {"b": 1, "h": 2, "s": 4, "d": 8, "q": 16}
NARROW = {"b": 1, "h": 2, "w": 4}
READS_ONLY = re.compile(r"st\w*|cmp|cmn|tst|ccm[pn]|cbn?z|tbn?z|br|blr|prfm")


def decode(content: bytes, address: int) -> Iterator[Instruction]:
    """Yield the instructions of `content`, whose first byte stands at `address`."""
    capstone = require("capstone", "capstone")
    decoder = capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM)
    decoder.skipdata = True
    pages: dict[str, int] = {}  # what adrp left in a register
    for place, size, mnemonic, text in decoder.disasm_lite(content, address):
        known = not mnemonic.startswith(".")
        touches = mnemonic[:2] in ("ld", "st", "pr") and "[" in text
        outside, _, inside = text.rpartition("[") if touches else (text, "", "")
        flow, target = _flow(mnemonic, text)
        reads, writes = _registers(mnemonic, outside)
        loaded = _transferred(mnemonic, outside) if mnemonic.startswith("ld") else 0
        stored = _transferred(mnemonic, outside) if mnemonic.startswith("st") else 0
        yield Instruction(
            place,
            size,
            mnemonic if known else UNKNOWN,
            flow,
            target,
            _reference(mnemonic, text, pages),
            known and WIDE.search(outside) is not None,
            loaded,
            stored,
            reads,
            writes,
            frozenset(f"x{number}" for number in GENERAL.findall(inside)),
            text,
        )


def _flow(mnemonic: str, text: str) -> tuple[str, int | None]:
    flow = {
        "b": JUMP,
        "br": JUMP,
        "bl": CALL,
        "blr": CALL,
        "ret": STOP,
        "brk": STOP,
        "udf": STOP,
    }.get(mnemonic, BRANCH if re.fullmatch(r"b\.\w+|cbn?z|tbn?z", mnemonic) else NEXT)
    place = re.search(r"#(0x[0-9a-f]+|\d+)$", text)
    jumps = flow in (JUMP, BRANCH, CALL) and place is not None
    return flow, int(place[1], 0) if jumps and place else None


def _registers(mnemonic: str, outside: str) -> tuple[frozenset[str], frozenset[str]]:
    """Return the general registers that are read (addresses apart) and written."""
    operands = [part.strip() for part in outside.split(",") if part.strip()]
    count = 0 if READS_ONLY.fullmatch(mnemonic) else 2 if mnemonic.startswith("ldp") else 1
    find = lambda parts: frozenset(f"x{n}" for part in parts for n in GENERAL.findall(part))
    return find(operands[count:]), find(operands[:count])


def _transferred(mnemonic: str, outside: str) -> int:
    """Return the bytes of a load or store of the registers named before its address."""
    listed = LISTED.findall(outside)
    if listed:
        single = mnemonic.endswith("r") or "]" in outside  # an element: ld1r, {v0.s}[1]
        counts = [1 if single else int(n) if n else SCALABLE // ELEMENT[e] for n, e in listed]
        return sum(n * ELEMENT[e] for n, (_, e) in zip(counts, listed, strict=True))
    names = re.findall(r"\b([xwqdshbz])(?:\d+|zr)\b", outside)
    narrow = re.search(r"[rp]s?([bhw])$", mnemonic)  # ldrb, ldursw, ldpsw
    return sum(NARROW[narrow[1]] if narrow else PLAIN[name] for name in names)


def _reference(mnemonic: str, text: str, pages: dict[str, int]) -> int | None:
    """Return the address that adr, or the second half of an adrp pair, states."""
    names = re.findall(r"\bx\d+\b", text)
    number = re.search(r"#(0x[0-9a-f]+|\d+)", text)
    value = int(number[1], 0) if number else 0
    if not names:  # adr xzr, or no general register at all
        return None
    if mnemonic in ("adr", "adrp"):
        pages.pop(names[0], None)
        if mnemonic == "adrp":
            pages[names[0]] = value
        return value if mnemonic == "adr" else None
    paired = mnemonic in ("add", "ldr") and len(names) == 2 and names[1] in pages
    found = pages[names[1]] + value if paired else None
    if not READS_ONLY.fullmatch(mnemonic):
        pages.pop(names[0], None)
    return found
