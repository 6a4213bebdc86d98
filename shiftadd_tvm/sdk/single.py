"""One library that holds a model, TVM's runtime, libshiftadd and files; and the same as an archive.

The library exports the C ABI and what hosts of a plain model.so look for; it needs libc and libm.
"""

import re
import struct
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from shiftadd_tvm import static_runtime
from shiftadd_tvm.errors import OutputError, UsageError
from shiftadd_tvm.sdk import host
from shiftadd_tvm.toolchain import ZIG, Linker, archiver, find_compiler

LARGEST = 1 << 30  # bytes of files that can be linked in: code reaches them by 32 bits
KERNELS = re.compile(r"__tvm_ffi_|__TVM")  # symbols that TVM looks up in a compiled library
EXPORTS = "{ global: shiftadd_*; __tvm_ffi_*; __TVM*; local: *; };\n"
# their parts that are used: another machine's may be older, or have none
SYSTEM = ("-Wl,--gc-sections", "-Wl,--no-undefined", "-pthread", "-ldl", "-lm")
OWN_LIBRARIES = ("-static-libstdc++", "-static-libgcc")
GLOBAL, WEAK = 1, 2  # bindings of a symbol


def link(
    library: Path,
    archive: Path | None,
    kernels: Sequence[Path],
    files: Mapping[str, Path],
    machine: str,
) -> None:
    """Write the library, and the archive if it is asked for, of compiled `kernels` (object files).

    `files` are linked in under their names. Raises `UsageError` if they are too large, `OutputError`
    where a tool fails, `UnsupportedError` where one is missing.
    """
    total = sum(path.stat().st_size for path in files.values())
    if total > LARGEST:
        raise UsageError(
            f"{total} bytes were to be linked into {library.name}, at most {LARGEST} can be; leave out "
            "--embed-parameters: the parameters are mapped from their file."
        )
    command = find_compiler(machine)
    with tempfile.TemporaryDirectory(prefix="shiftadd-link-") as place:
        scratch = Path(place)
        (scratch / "linked_table.cpp").write_text(_table(kernels, files))
        (scratch / "linked_files.S").write_text(_contents(files))
        (scratch / "exports.map").write_text(EXPORTS)
        parts: list[str | Path] = [*kernels, *host.linked_objects(machine)]
        parts += static_runtime.objects(machine)
        parts += _compile(command, scratch)
        own = () if ZIG in command else OWN_LIBRARIES
        names = (f"-Wl,-soname,{library.name}", f"-Wl,--version-script={scratch}/exports.map")
        Linker(command).link(library, [*names, *own, *parts, *SYSTEM])
        if archive is not None:
            _archive(archive, parts, command, machine, scratch)


def _compile(command: Sequence[str], folder: Path) -> list[Path]:
    made = []
    for name in ("linked_table.cpp", "linked_files.S"):
        made.append(folder / f"{name}.o")
        words = [*command, "-fPIC", f"-I{host.LINKED}", "-c", name, "-o", made[-1].name]
        _run(words, folder, "The linked files")
    return made


def _archive(
    archive: Path, parts: Iterable[str | Path], command: Sequence[str], machine: str, folder: Path
) -> None:
    """Join all objects into one, since what registers itself at start is asked for by nobody."""
    whole = folder / "shiftadd.o"
    words = [*command, "-r", "-nostdlib", "-o", whole.name, *map(str, parts)]
    _run(words, folder, archive.name)
    archive.unlink(missing_ok=True)
    _run([*archiver(machine), "rcsD", str(archive.resolve()), whole.name], folder, archive.name)


def _run(words: Sequence[str], folder: Path, what: str) -> None:
    child = subprocess.run(
        words, cwd=folder, capture_output=True, text=True, errors="replace", check=False
    )
    if child.returncode:
        lines = child.stderr.strip().splitlines() or [f"exit status {child.returncode}"]
        raise OutputError(f"{what} cannot be made by {words[0]}: {lines[-1]}.")


def _table(kernels: Iterable[Path], files: Mapping[str, Path]) -> str:
    """Return the C++ text that says what is linked in (linked.h)."""
    names = sorted({n for path in kernels for n in symbols(path.read_bytes()) if KERNELS.match(n)})
    lines = ['#include "linked.h"', 'extern "C" {']
    lines += [f'extern char symbol_{i} __asm__("{name}");' for i, name in enumerate(names)]
    for index in range(len(files)):
        hidden = '__attribute__((visibility("hidden")))'
        lines += [f"extern const char shiftadd_file_{index}[], shiftadd_end_{index}[] {hidden};"]
    lines += ["const struct shiftadd_linked_symbol shiftadd_linked_symbols[] = {"]
    lines += [f'    {{"{name}", &symbol_{i}}},' for i, name in enumerate(names)]
    lines += ["};", f"const size_t shiftadd_linked_symbol_count = {len(names)};"]
    lines += ["const struct shiftadd_linked_file shiftadd_linked_files[] = {"]
    for index, name in enumerate(files):
        lines += [f'    {{"{name}", shiftadd_file_{index}, shiftadd_end_{index}}},']
    lines += ["};", f"const size_t shiftadd_linked_file_count = {len(files)};", "}"]
    return "\n".join(lines) + "\n"


def _contents(files: Mapping[str, Path]) -> str:
    """Return the assembler text that holds the files, each at a multiple of 64 bytes."""
    lines = ['.section .rodata.shiftadd_files, "a"']
    for index, path in enumerate(files.values()):
        for name, after in ((f"shiftadd_file_{index}", True), (f"shiftadd_end_{index}", False)):
            lines += [".balign 64"] if after else []
            lines += [f".globl {name}", f".hidden {name}", f"{name}:"]
            lines += [f'.incbin "{path.resolve()}"'] if after else [".byte 0"]
    return "\n".join([*lines, '.section .note.GNU-stack, "", %progbits', ""])


def symbols(content: bytes) -> list[str]:
    """Return the symbols that an object file (64-bit ELF, little-endian) defines for others."""
    (sections,) = struct.unpack_from("<Q", content, 0x28)
    size, count = struct.unpack_from("<HH", content, 0x3A)
    table = [struct.unpack_from("<IIQQQQIIQQ", content, sections + i * size) for i in range(count)]
    found = []
    for _, kind, _, _, start, length, strings, _, _, _ in table:
        if kind != 2:  # SHT_SYMTAB
            continue
        base = table[strings][4]
        for place in range(start, start + length, 24):
            name, info, _, section = struct.unpack_from("<IBBH", content, place)
            if info >> 4 in (GLOBAL, WEAK) and section:
                begin = base + name
                found.append(content[begin : content.index(b"\0", begin)].decode())
    return found
