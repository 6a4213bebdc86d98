"""Count what the kernels of a compiled library do, class by class, from its machine code.

A kernel is an exported function and every function that it calls or hands over to be called (the
body of a parallel loop). Its counts are those of the loop that runs most; that it never multiplies is
said only when that holds for all of its code.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from shiftadd_tvm.control_flow import Loop, find_loops, follow
from shiftadd_tvm.disassembly import CALL, JUMP, NEXT, UNKNOWN, Instruction, disassemble
from shiftadd_tvm.errors import BadFileError
from shiftadd_tvm.instruction_classes import (
    CLASSES,
    MULTIPLY,
    SCALAR,
    classify,
    is_scalar_product,
)
from shiftadd_tvm.machine_code import PREFIX, Code, read_code

# Kernels that read weights, and those that prepare or follow; by the names of their operators.
LINEAR = re.compile(r"(lut|gemm|dense|shift|hadamard|attend)(_[a-z]\w*)?\d*")
# What a kernel may call without computing elsewhere: TVM's runtime, and moves of memory.
HARMLESS = re.compile(
    r"(__)?TVM(FFIError\w+|Backend((Alloc|Free)Workspace|Parallel(Launch|Barrier)))|mem(cpy|set|move)"
)
STACK = frozenset({"rsp", "rbp", "sp", "x29"})  # registers that say where a function's stack is
ADDRESS, DATA, HIDDEN = "address", "data", "hidden"  # what becomes of a product
TURNS = 10  # of a loop, where nothing is known: as compilers estimate
CLEAR = 1.5  # times the estimate of any other code: which loop runs most is decided


@dataclass(frozen=True)
class KernelCount:
    """What a kernel does. Counts are instructions by class; one that loads and adds counts twice.

    `loop` counts the loop that runs most, `whole` all code; `instructions` and `loop_bytes` are the
    loop's length, `loaded_bytes` what one turn reads. `data_instructions` leaves out what only
    touches general registers: addresses, counters, control. `foreign` are called functions whose
    code is not in the library; `hidden` counts products of general registers in loops that go out of
    sight on the stack: addresses or data. Not `decided`: other code may run as often as the loop.
    """

    name: str
    loop: dict[str, int]
    whole: dict[str, int]
    instructions: int
    data_instructions: int
    loop_bytes: int
    loaded_bytes: int
    foreign: tuple[str, ...]
    hidden: int = 0
    decided: bool = True

    @property
    def multiplication_free(self) -> bool | None:
        """True: the code proves that no data are multiplied; False: it multiplies data.

        None: it is undecided, since the code holds, hides or calls what cannot be read.
        """
        if self.whole[MULTIPLY] or self.loop[MULTIPLY]:
            return False
        return None if self.foreign or self.hidden or self.whole[UNKNOWN] else True

    def instructions_per_weight_bit(self, weight_bits: int) -> float:
        """Return instructions ÷ weight bits, given how many weight bits one turn of the loop covers."""
        return self.instructions / weight_bits

    def to_dict(self) -> dict[str, object]:
        """Return the counts as the command line prints them."""
        return {
            **self.loop,
            "instructions": self.instructions,
            "data_instructions": self.data_instructions,
            "loop_bytes": self.loop_bytes,
            "loaded_bytes": self.loaded_bytes,
            "whole": self.whole,
            "calls": list(self.foreign),
            "hidden": self.hidden,
            "loop_decided": self.decided,
            "multiplication_free": self.multiplication_free,
        }


def count_library(path: Path) -> dict[str, KernelCount]:
    """Return the counts of the linear kernels of `model.so`, by name.

    Raises `BadFileError`, `UnsupportedError`.
    """
    code = _read(path)
    named = {
        name.removeprefix(PREFIX): place for name, place in code.names.items() if PREFIX in name
    }
    kernels = sorted(filter(LINEAR.fullmatch, named), key=_natural)
    if not kernels:
        raise BadFileError(
            f"{path} exports no linear kernel (expected functions such as {PREFIX}lut_query); "
            "compile it again."
        )
    return {name: _count(code, name, named[name]) for name in kernels}


def count_instructions(path: Path, function: str) -> KernelCount:
    """Return the counts of one function of a library or object file, of any operator.

    `function` is its name, with or without `__tvm_ffi_`. Raises `BadFileError`, `UnsupportedError`.
    """
    code = _read(path)
    return _count(code, function, _place(code, path, function))


def busiest_loop(path: Path, function: str) -> tuple[tuple[Instruction, ...], bool]:
    """Return the instructions of the loop that a function is estimated to run most, and whether no
    other code comes near it; names and errors are those of `count_instructions`."""
    code = _read(path)
    functions, _ = _reached(code, _place(code, path, function))
    loops = [loop for function in functions for loop in find_loops(function)]
    found, decided = _busiest(loops, [i for function in functions for i in function])
    return found.instructions, decided


def _place(code: Code, path: Path, function: str) -> int:
    place = code.names.get(PREFIX + function, code.names.get(function))
    if place is None:
        raise BadFileError(f"{path} holds no function {function}; it has {', '.join(code.names)}.")
    return place


def _read(path: Path) -> Code:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadFileError(f"{path} cannot be read: {error.strerror}.") from None
    return read_code(content, str(path))


def _natural(name: str) -> tuple[str, int]:
    stem = name.rstrip("0123456789")
    return stem, int(name[len(stem) :] or 0)


def _count(code: Code, name: str, place: int) -> KernelCount:
    functions, foreign = _reached(code, place)
    loops = [(loop, function) for function in functions for loop in find_loops(function)]
    everything = [i for function in functions for i in function]
    uses = {i.address: u for loop, function in loops for i, u in _products(loop, function)}
    products = {address for address, use in uses.items() if use == DATA}
    busiest, decided = _busiest([loop for loop, _ in loops], everything)
    whole, inner = _classes(everything, code), _classes(busiest.instructions, code)
    whole[MULTIPLY] += len(products)
    inner[MULTIPLY] += len(products & {i.address for i in busiest.instructions})
    return KernelCount(
        name=name,
        loop={key: inner[key] for key in CLASSES},
        whole={key: whole[key] for key in CLASSES},
        instructions=len(busiest.instructions),
        data_instructions=sum(classify(i, code.machine) != (SCALAR,) for i in busiest.instructions),
        loop_bytes=busiest.code_bytes,
        loaded_bytes=sum(i.loaded for i in busiest.instructions),
        foreign=tuple(sorted(foreign)),
        hidden=sum(use == HIDDEN for use in uses.values()),
        decided=decided,
    )


def _classes(instructions: Iterable[Instruction], code: Code) -> Counter[str]:
    return Counter(key for i in instructions for key in classify(i, code.machine))


def _busiest(loops: list[Loop], everything: list[Instruction]) -> tuple[Loop, bool]:
    """Return the innermost loop that is estimated to run most vector instructions, and whether no other
    code comes near it: how often loops turn is not always known."""
    innermost = [loop for loop in loops if loop.innermost]
    turns = {loop: _turns(_own(loop, loops)) for loop in loops}

    def work(part: Loop) -> float:
        """Return how many vector instructions a part of a loop is estimated to run."""
        around = [n for loop, n in turns.items() if set(part.instructions) <= set(loop.instructions)]
        return sum(i.vector for i in part.instructions) * prod(around)

    found = max(innermost, key=work, default=Loop(tuple(everything), 0, True))
    rivals = [work(_own(loop, loops)) for loop in loops if loop is not found]
    return found, work(found) >= CLEAR * max(rivals, default=0)


def _own(loop: Loop, loops: list[Loop]) -> Loop:
    """Return a loop without the loops that it holds."""
    held: set[Instruction] = set()
    for other in loops:
        if set(other.instructions) < set(loop.instructions):
            held.update(other.instructions)
    own = tuple(i for i in loop.instructions if i not in held)
    return Loop(own, loop.depth, loop.innermost)


def _turns(loop: Loop) -> float:
    """Return how often a loop turns, if it ends in a count up to a number; what holds loops comes
    without them."""
    compared = [i for i in loop.instructions if i.mnemonic == "cmp"]
    if not compared:
        return TURNS
    last = compared[-1]
    if last.immediate is None or len(last.reads) != 1 or last.immediate <= 0:
        return TURNS
    steps = [i for i in loop.instructions if i.writes & last.reads and i.flow == NEXT]
    size = {"inc": 1, "add": steps[0].immediate}.get(steps[0].mnemonic) if len(steps) == 1 else None
    return max(last.immediate / size, 1) if size and size > 0 else TURNS


def _reached(code: Code, place: int) -> tuple[list[list[Instruction]], set[str]]:
    """Return the functions that may run, the one at `place` first, and the names of those elsewhere."""
    found: dict[int, list[Instruction]] = {}
    foreign: set[str] = set()
    waiting = [place]
    while waiting:
        start = waiting.pop()
        if start not in found:
            found[start] = disassemble(code.body(start), start, code.machine)
            near, far = _leads_to(code, found[start])
            waiting += near
            foreign |= far
    return list(found.values()), foreign


def _leads_to(code: Code, function: Sequence[Instruction]) -> tuple[set[int], set[str]]:
    """Return which functions of the library a function leads to, and what it calls elsewhere."""
    inside = {i.address for i in function}
    near: set[int] = set()
    far: set[str] = set()
    known: set[str] = set()
    blind = False  # whether a register or the memory says what is called
    for instruction in function:
        mentioned = _mentions(code, instruction)
        known |= {name for name, _ in mentioned}
        blind |= instruction.flow == CALL and not mentioned
        for name, target in mentioned:
            if target in inside:
                continue
            if target is not None and code.section(target) and not _is_stub(code, target):
                near.add(target)
            elif instruction.flow in (CALL, JUMP):
                far.add(name or _stub_name(code, target))
    if blind and not any(map(HARMLESS.fullmatch, known)):
        far.add("an unknown function")
    return near, {name for name in far if not HARMLESS.fullmatch(name)}


def _mentions(code: Code, instruction: Instruction) -> list[tuple[str, int | None]]:
    """Return the symbols and addresses of code that an instruction calls, jumps to or forms."""
    relocated = [
        code.relocated[place]
        for place in range(instruction.address, instruction.address + instruction.size)
        if place in code.relocated
    ]
    if relocated:
        return relocated
    places = (instruction.target, instruction.reference)
    return [(code.slots.get(place, ""), place) for place in places if place is not None]


def _is_stub(code: Code, place: int | None) -> bool:
    section = code.section(place or 0)
    return section is not None and section.name.startswith(".plt")


def _stub_name(code: Code, place: int | None) -> str:
    """Return the symbol to which a stub of the linker jumps, or the address as text."""
    section = code.section(place or 0)
    if place is None or section is None or not _is_stub(code, place):
        return hex(place or 0)
    stub = section.content[place - section.address :][:32]
    for instruction in disassemble(stub, place, code.machine):
        if instruction.reference in code.slots:
            return code.slots[instruction.reference]
    return hex(place)


def _products(loop: Loop, function: Sequence[Instruction]) -> list[tuple[Instruction, str]]:
    """Return the products of general registers in a loop, and what becomes of each."""
    products = filter(is_scalar_product, loop.instructions)
    return [(product, _use(product, function)) for product in products]


def _use(product: Instruction, function: Sequence[Instruction]) -> str:
    """Return what becomes of a product: `DATA` if it flows, through general registers, into memory or
    a vector register, or into no address; else `HIDDEN` if it is kept on the stack, where it is lost
    from sight; else `ADDRESS`."""
    placed = {i.address: i for i in function}
    seen: set[tuple[int, str]] = set()
    waiting = [(place, name) for place in follow(product) for name in product.writes]
    use = DATA
    while waiting:
        place, name = waiting.pop()
        if (place, name) in seen or place not in placed:
            continue
        seen.add((place, name))
        user = placed[place]
        if name in user.reads and (user.stored or user.vector):
            if user.vector or not user.addresses & STACK:
                return DATA
            use = HIDDEN
        if name in user.addresses and use == DATA:
            use = ADDRESS
        made = user.writes if name in user.reads and not user.loaded else frozenset()
        kept = made | ({name} - user.writes)
        waiting += [(after, register) for after in follow(user) for register in kept]
    return use
