"""NVRTC by its C interface: CUDA source in, machine code (a cubin) out; needs neither GPU nor driver.

TVM's own way to NVRTC takes three more packages (bindings and libcu++); of libcu++ its generated code
uses names of integers and traits only, which `SHIMS` are.
"""

import ctypes
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from shiftadd_tvm.cuda.toolkit import Toolkit
from shiftadd_tvm.errors import OutputError

ELF = b"\x7fELF"

_INTEGERS = """namespace cuda { namespace std {
typedef signed char int8_t; typedef unsigned char uint8_t;
typedef short int16_t; typedef unsigned short uint16_t;
typedef int int32_t; typedef unsigned int uint32_t;
typedef long long int64_t; typedef unsigned long long uint64_t;
} }
"""
_TRAITS = """namespace cuda { namespace std {
template <class A, class B> struct is_same { static constexpr bool value = false; };
template <class A> struct is_same<A, A> { static constexpr bool value = true; };
template <class A, class B> constexpr bool is_same_v = is_same<A, B>::value;
template <class A> struct is_integral { static constexpr bool value = (A)1 / 2 == (A)0; };
template <class A> struct is_signed { static constexpr bool value = (A)-1 < (A)0; };
template <class A> struct is_unsigned { static constexpr bool value = !((A)-1 < (A)0); };
template <class A> struct is_floating_point { static constexpr bool value = (A)1 / 2 != (A)0; };
template <bool C, class A = void> struct enable_if {};
template <class A> struct enable_if<true, A> { typedef A type; };
template <bool C, class A, class B> struct conditional { typedef A type; };
template <class A, class B> struct conditional<false, A, B> { typedef B type; };
} }
"""
_LIMITS = """#define INFINITY __int_as_float(0x7f800000)
"""
SHIMS = {
    "cuda/std/cstdint": _INTEGERS,
    "cuda/std/type_traits": _TRAITS,
    "cuda/std/limits": _LIMITS,
}


@dataclass(frozen=True)
class Compiled:
    """A cubin, the assembly that it was made of, and what the assembler said of each kernel."""

    cubin: bytes
    ptx: str
    log: str


@dataclass(frozen=True)
class Usage:
    """What the assembler gave a kernel: registers of a thread, bytes that it spills to memory."""

    registers: int
    spill_bytes: int


class Nvrtc:
    """The library, loaded."""

    def __init__(self, toolkit: Toolkit) -> None:
        """Load it; `OSError` where it is damaged."""
        self._toolkit = toolkit
        self._library = ctypes.CDLL(str(toolkit.compiler))
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p

    def compile(self, source: str, arch: str) -> Compiled:
        """Return the machine code of CUDA `source` for `arch`, such as "sm_90".

        Raises `OutputError` with the first error of the compiler.
        """
        names = (ctypes.c_char_p * len(SHIMS))(*(name.encode() for name in SHIMS))
        texts = (ctypes.c_char_p * len(SHIMS))(*(text.encode() for text in SHIMS.values()))
        program = ctypes.c_void_p()
        made = self._library.nvrtcCreateProgram(
            ctypes.byref(program), source.encode(), b"kernels.cu", len(SHIMS), texts, names
        )
        self._check(made, "cannot be read")
        try:
            return self._compiled(program, arch)
        finally:
            self._library.nvrtcDestroyProgram(ctypes.byref(program))

    def _compiled(self, program: Any, arch: str) -> Compiled:
        options = (
            *(f"-arch={arch}", "-std=c++17", f"-I{self._toolkit.headers}", "-w"),
            "--ptxas-options=-v",
        )
        given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        status = self._library.nvrtcCompileProgram(program, len(options), given)
        library = self._library
        log = self._text(program, library.nvrtcGetProgramLogSize, library.nvrtcGetProgramLog)
        if status:
            lines = [line for line in log.decode().splitlines() if "error" in line]
            self._check(status, f"do not compile for {arch}: {(lines or ['no reason given'])[0]}")
        cubin = self._text(program, library.nvrtcGetCUBINSize, library.nvrtcGetCUBIN)
        ptx = self._text(program, library.nvrtcGetPTXSize, library.nvrtcGetPTX)
        return Compiled(cubin, ptx.rstrip(b"\0").decode(), log.rstrip(b"\0").decode())

    def _text(self, program: Any, size: Callable[..., int], get: Callable[..., int]) -> bytes:
        count = ctypes.c_size_t()
        self._check(size(program, ctypes.byref(count)), "cannot be read back")
        buffer = ctypes.create_string_buffer(count.value)
        self._check(get(program, buffer), "cannot be read back")
        return buffer.raw

    def _check(self, status: int, what: str) -> None:
        if status:
            reason = self._library.nvrtcGetErrorString(status).decode()
            raise OutputError(f"The kernels for CUDA {what} ({reason}); please report it.")


def usage(log: str) -> dict[str, Usage]:
    """Return what the assembler's log says of each kernel, by name."""
    found = {}
    pattern = re.compile(
        r"Function properties for (\S+)\n.* (\d+) bytes spill stores, (\d+) bytes spill loads\n"
        r".*Used (\d+) registers"
    )
    for name, stores, loads, registers in pattern.findall(log):
        found[name] = Usage(int(registers), int(stores) + int(loads))
    return found
