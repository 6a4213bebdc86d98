"""Run a static program for x86-64 with AVX-512 in Bochs: a whole PC, with no operating system.

Bochs refuses whatever its model of a processor lacks, so a program that ends well has also proved that
it needs no other instructions.
"""

import dataclasses
import io
import os
import re
import struct
import subprocess
from pathlib import Path

from shiftadd_tvm.backend import Backend

HERE = Path(__file__).parent
MACHINE = "x86_64"
PROGRAM, NAME, CYLINDER = 1 << 20, 256, 256 * 512  # see bare_metal.S and bare_metal.c
BUILD = (  # how a C compiler makes the program
    *(str(HERE / "bare_metal.S"), str(HERE / "bare_metal.c")),
    *("-fno-pie", "-no-pie", f"-Wl,--image-base={PROGRAM:#x}", "-Wl,-e,boot"),
)
# Bochs 2.7 refuses gathers (0F38 90 to 93) and scatters (A0 to A3) by an index in the vector registers 16
# to 31, which bit 3 of the fourth byte says: a fault of its own
REFUSED = re.compile(r"\(invalid\) +; 62[0-9a-f][2a]..[0-9a-f][0-7][9a][0-3]")
# of Bochs' processors the oldest that has what x86-64-v4 means and VNNI
SETTINGS = """
display_library: term
config_interface: textconfig
cpu: model=corei7_icelake_u, reset_on_triple_fault=0
memory: guest=256, host=256
romimage: file="{rom}", address={address:#x}
ata0-master: type=disk, path="{disk}", cylinders={cylinders}, heads=16, spt=16
parport1: enabled=1, file="{results}"
port_e9_hack: enabled=1
panic: action=fatal
log: "{log}"
"""
SHUT_DOWN = "shutdown requested"


class RefusedGather(Exception):
    """The program gathers or scatters as this emulator cannot, though a processor can."""


def without_gathers(target: Backend) -> Backend:
    """Return `target` for code that neither gathers nor scatters."""
    plain = ["+prefer-no-gather", "+prefer-no-scatter"]
    named = [*target.target.get("mattr", []), *plain]
    return dataclasses.replace(target, target={**target.target, "mattr": named})


def load(program: Path, data: bytes) -> tuple[bytes, bytes]:
    """Return a PC's ROM and its disk: what is to lie in memory from PROGRAM on, `data` at the end."""
    from elftools.elf.elffile import ELFFile  # an extra, which few tests need

    elf = ELFFile(io.BytesIO(program.read_bytes()))
    parts = [part for part in elf.iter_segments() if part["p_type"] == "PT_LOAD"]
    end = max(part["p_vaddr"] + part["p_memsz"] for part in parts)
    disk = bytearray(end - PROGRAM) + data
    disk += bytes(-len(disk) % CYLINDER)
    for part in parts:
        at = part["p_vaddr"] - PROGRAM
        disk[at : at + part["p_filesz"]] = part.data()
    rom = bytearray(elf.get_section_by_name(".rom").data())
    struct.pack_into("<2I", rom, 0, len(disk) // CYLINDER, end)
    return bytes(rom), bytes(disk)


def run(command: str, program: Path, name: str, operands: Path, results: Path) -> None:
    """Run a kernel of the program that `emulated.c` and BUILD make; assert that it ends well.

    Raises `RefusedGather`.
    """
    rom, disk, settings = (operands.with_suffix(end) for end in (".rom", ".disk", ".bochsrc"))
    made = load(program, name.encode().ljust(NAME, b"\0") + operands.read_bytes())
    for path, content in zip((rom, disk), made, strict=True):
        path.write_bytes(content)
    address, cylinders = (1 << 32) - len(made[0]), len(made[1]) // CYLINDER
    places = {"rom": rom, "disk": disk, "results": results, "log": f"{settings}.log"}
    settings.write_text(SETTINGS.format(address=address, cylinders=cylinders, **places))
    child = subprocess.run(
        [command, "-q", "-f", settings],
        input="continue\n",  # what Debian's build asks for: it has a debugger
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env={**os.environ, "TERM": "vt100"},
        timeout=300,
    )
    if REFUSED.search(child.stdout):
        raise RefusedGather(name)
    assert SHUT_DOWN in child.stdout + child.stderr, child.stdout + child.stderr
