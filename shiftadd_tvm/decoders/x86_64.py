"""Decode x86-64 (SSE to AVX-512, AMX) by iced-x86, which knows what an instruction reads and writes."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from shiftadd_tvm.disassembly import BRANCH, CALL, JUMP, NEXT, STOP, UNKNOWN, Instruction
from shiftadd_tvm.machine_code import require


@cache
def _names(enumeration: str) -> dict[int, str]:
    """Return value → name of an enumeration of iced-x86, in lower case."""
    members = vars(getattr(require("iced_x86", "iced-x86"), enumeration)).items()
    return {value: name.lower() for name, value in members if isinstance(value, int)}


def decode(content: bytes, address: int) -> Iterator[Instruction]:
    """Yield the instructions of `content`, whose first byte stands at `address`."""
    iced = require("iced_x86", "iced-x86")
    factory, flows = iced.InstructionInfoFactory(), _flows(iced.FlowControl)
    mnemonics, registers = _names("Mnemonic"), _names("Register")
    direct = (iced.OpKind.NEAR_BRANCH16, iced.OpKind.NEAR_BRANCH32, iced.OpKind.NEAR_BRANCH64)
    full = cache(lambda register: registers[iced.RegisterExt.full_register(register)])
    wide = cache(lambda register: _is_wide(iced.RegisterExt, register))
    for found in iced.Decoder(64, content, ip=address):
        if found.code == iced.Code.INVALID:
            yield Instruction(found.ip, found.len, UNKNOWN)
            continue
        info, name = factory.info(found), mnemonics[found.mnemonic]
        kinds = [found.op_kind(i) for i in range(found.op_count)]
        operands = [found.op_register(i) for i, k in enumerate(kinds) if k == iced.OpKind.REGISTER]
        loaded, stored = (0, 0) if found.is_stack_instruction else _memory(iced, info)
        touches = bool(loaded or stored)
        yield Instruction(
            found.ip,
            found.len,
            name,
            flows.get(found.flow_control, NEXT),
            found.near_branch_target if kinds and kinds[0] in direct else None,
            found.ip_rel_memory_address if found.is_ip_rel_memory_operand else None,
            name.startswith("f") or any(map(wide, operands)),  # x87 need name no register
            loaded,
            stored,
            *_registers(iced, info, set(map(full, operands)), full, touches),
            immediate=_immediate(iced, found, kinds),
        )


def _flows(kind: Any) -> dict[int, str]:
    return {
        kind.UNCONDITIONAL_BRANCH: JUMP,
        kind.INDIRECT_BRANCH: JUMP,
        kind.CONDITIONAL_BRANCH: BRANCH,
        kind.CALL: CALL,
        kind.INDIRECT_CALL: CALL,
        kind.RETURN: STOP,
        kind.EXCEPTION: STOP,
    }


def _immediate(iced: Any, found: Any, kinds: list[int]) -> int | None:
    """Return the number that is an instruction's last operand."""
    if not kinds or not _names("OpKind")[kinds[-1]].startswith("immediate"):
        return None
    number = int(found.immediate(len(kinds) - 1))
    return number - (1 << 64) if number >> 63 else number


def _is_wide(tests: Any, register: int) -> bool:
    kinds = (tests.is_vector_register, tests.is_mm, tests.is_st, tests.is_k, tests.is_tmm)
    return any(is_kind(register) for is_kind in kinds)


def _memory(iced: Any, info: Any) -> tuple[int, int]:
    """Return the bytes that an instruction loads and stores."""
    access, loaded, stored = iced.OpAccess, 0, 0
    both = (access.READ_WRITE, access.READ_COND_WRITE)
    for memory in info.used_memory():
        size = iced.MemorySizeExt.size(memory.memory_size)
        if memory.access in (access.READ, access.COND_READ, *both):
            loaded += size
        if memory.access in (access.WRITE, access.COND_WRITE, *both):
            stored += size
    return loaded, stored


def _registers(
    iced: Any, info: Any, operands: set[str], full: Callable[[int], str], touches: bool
) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """Return the general registers that are read, written, and used in an address.

    The address of an instruction that touches no memory (lea) is what it computes: read, not used.
    """
    access = iced.OpAccess
    reading = (access.READ, access.COND_READ, access.READ_WRITE, access.READ_COND_WRITE)
    writing = (access.WRITE, access.COND_WRITE, access.READ_WRITE, access.READ_COND_WRITE)
    used = [
        (full(u.register), u.access)
        for u in info.used_registers()
        if iced.RegisterExt.is_gpr(u.register)
    ]
    parts = [r for m in info.used_memory() for r in (m.base, m.index) if touches]
    addresses = frozenset(full(r) for r in parts if iced.RegisterExt.is_gpr(r))
    reads = {name for name, how in used if how in reading}
    writes = {name for name, how in used if how in writing}
    return frozenset(reads - (addresses - operands)), frozenset(writes), addresses
