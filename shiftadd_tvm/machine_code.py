"""Read the machine code of a library or object file (ELF): sections, functions, and what points where.

`model.so` keeps no symbol table, only the names that it exports. The functions that stand behind them
(the bodies of parallel loops) have no name; where they begin is read from the unwind table.
"""

import bisect
import importlib
import io
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from shiftadd_tvm.errors import BadFileError, UnsupportedError

MACHINES = {"EM_X86_64": "x86_64", "EM_AARCH64": "aarch64"}
EXECUTABLE = 0x4  # SHF_EXECINSTR
PREFIX = "__tvm_ffi_"  # of the functions that TVM exports
# What a damaged file makes the ELF reader raise, beside its own errors.
DAMAGE = (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError)


def require(module: str, package: str) -> ModuleType:
    """Return an imported library of the disassembler; `UnsupportedError` where it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UnsupportedError(
            f"Reading machine code needs {package}, which cannot be imported ({error}); "
            "install it: pip install 'shiftadd-tvm[inspect]'."
        ) from None


@dataclass(frozen=True)
class Section:
    """Executable bytes and the address of the first."""

    name: str
    address: int
    content: bytes

    @property
    def end(self) -> int:
        """The address after the last byte."""
        return self.address + len(self.content)


@dataclass
class Code:
    """The executable part of a file; all addresses are those of the file.

    `names` are the functions with a name, `starts` where any function begins (sorted), `slots` the
    pointers that the loader fills in and the symbol each gets, `relocated` the instruction fields
    that a linker has yet to fill in (object files only): the symbol and its address, if it is here.
    """

    machine: str
    sections: list[Section] = field(default_factory=list)
    names: dict[str, int] = field(default_factory=dict)
    starts: list[int] = field(default_factory=list)
    slots: dict[int, str] = field(default_factory=dict)
    relocated: dict[int, tuple[str, int | None]] = field(default_factory=dict)

    def section(self, address: int) -> Section | None:
        """Return the executable section that holds `address`."""
        return next((s for s in self.sections if s.address <= address < s.end), None)

    def body(self, start: int) -> bytes:
        """Return the bytes from `start` to where the next function or the section's end is."""
        section = self.section(start)
        assert section is not None, hex(start)
        after = bisect.bisect_right(self.starts, start)
        end = min([section.end, *self.starts[after : after + 1]])
        return section.content[start - section.address : max(end, start) - section.address]


def read_code(content: bytes, name: str) -> Code:
    """Return the code of an ELF file for x86-64 or aarch64; `name` stands in errors.

    Raises `BadFileError` for what is no whole ELF file, `UnsupportedError` for another machine.
    """
    reader = require("elftools.elf.elffile", "pyelftools")
    errors = require("elftools.common.exceptions", "pyelftools")
    try:
        elf = reader.ELFFile(io.BytesIO(content))
        return _read(elf, name, len(content))
    except (errors.ELFError, errors.DWARFError, AssertionError, MemoryError, *DAMAGE) as error:
        raise BadFileError(
            f"{name} cannot be read as a library ({str(error) or type(error).__name__}); expected a "
            "whole ELF file as compile writes it; compile it again."
        ) from None


def _read(elf: Any, name: str, size: int) -> Code:
    machine = MACHINES.get(elf["e_machine"])
    if machine is None:
        raise UnsupportedError(
            f"{name} is for the machine {elf['e_machine']}; instructions can be counted for x86-64 "
            "and aarch64."
        )
    code = Code(machine)
    linked = elf["e_type"] != "ET_REL"
    sections = list(elf.iter_sections())
    ends = [s["sh_offset"] + s["sh_size"] for s in sections if s["sh_type"] != "SHT_NOBITS"]
    if max(ends, default=0) > size or not sections:
        raise ValueError(f"{size} bytes, its sections need {max(ends, default=0)}")
    # In an object file every section begins at 0: its place in the file tells them apart.
    bases = {
        index: section["sh_addr"] if linked else section["sh_offset"]
        for index, section in enumerate(sections)
        if section["sh_flags"] & EXECUTABLE and section["sh_type"] == "SHT_PROGBITS"
    }
    code.sections = [
        Section(sections[i].name, base, sections[i].data()) for i, base in bases.items()
    ]
    starts = _symbols(code, sections, bases, linked)
    for section in sections:
        if section["sh_type"] == "SHT_RELA":
            starts |= _relocations(code, section, sections, bases, linked)
    if linked and elf.get_section_by_name(".eh_frame") is not None:
        unwind = elf.get_dwarf_info(relocate_dwarf_sections=False, follow_links=False)
        entries = [getattr(entry, "header", {}) for entry in unwind.EH_CFI_entries()]
        starts |= {e["initial_location"] for e in entries if "initial_location" in e}
    code.starts = sorted(start for start in starts if code.section(start) is not None)
    return code


def _symbols(code: Code, sections: list[Any], bases: dict[int, int], linked: bool) -> set[int]:
    """Enter named functions and pointers into `code`; return where the functions begin."""
    starts = set()
    tables = [s for s in sections if s["sh_type"] in ("SHT_SYMTAB", "SHT_DYNSYM")]
    for symbol in (symbol for table in tables for symbol in table.iter_symbols()):
        address, kind = _symbol_address(symbol, bases, linked), symbol["st_info"]["type"]
        if kind == "STT_FUNC" and address is not None:
            if code.section(address) is None:
                raise ValueError(f"{symbol.name} at {address:#x}, where no code is")
            code.names[symbol.name] = address
            starts.add(address)
        elif kind == "STT_OBJECT" and symbol["st_value"]:
            code.slots[symbol["st_value"]] = symbol.name
    return starts


def _symbol_address(symbol: Any, bases: dict[int, int], linked: bool) -> int | None:
    """Return the address of a symbol that stands in executable code, else None."""
    base = bases.get(symbol["st_shndx"])
    if base is None:
        return None
    return int(symbol["st_value"]) if linked else base + int(symbol["st_value"])


def _relocations(
    code: Code, section: Any, sections: list[Any], bases: dict[int, int], linked: bool
) -> set[int]:
    """Enter a table of relocations; return where the unwind table says that functions begin."""
    starts: set[int] = set()
    symbols, target = sections[section["sh_link"]], sections[section["sh_info"]]
    for entry in section.iter_relocations():
        symbol = symbols.get_symbol(entry["r_info_sym"])
        if linked:
            if symbol.name:
                code.slots[entry["r_offset"]] = symbol.name
            continue
        address = _symbol_address(symbol, bases, linked)
        place = address if address is None else address + entry["r_addend"]
        if target.name == ".eh_frame" and place is not None:
            starts.add(place)
        elif section["sh_info"] in bases:
            # x86 counts from the end of its 4-byte field
            behind = 4 if code.machine == "x86_64" and place is not None else 0
            where = bases[section["sh_info"]] + entry["r_offset"]
            code.relocated[where] = (symbol.name, None if place is None else place + behind)
    return starts
