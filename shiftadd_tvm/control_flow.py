"""Loops of a disassembled function: blocks, back edges, and how deep each loop is nested."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shiftadd_tvm.disassembly import BRANCH, JUMP, STOP, Instruction

Edges = dict[int, list[int]]


@dataclass(frozen=True)
class Loop:
    """A natural loop: its instructions by address, how many loops hold it, whether it holds one."""

    instructions: tuple[Instruction, ...]
    depth: int  # 1: in no other loop
    innermost: bool

    @property
    def code_bytes(self) -> int:
        """Bytes of machine code."""
        return sum(instruction.size for instruction in self.instructions)


def find_loops(function: Sequence[Instruction]) -> list[Loop]:
    """Return the loops of a function, given its instructions in order of address."""
    blocks = _blocks(function)
    if not blocks:
        return []
    after = _successors(blocks)
    before: Edges = {start: [] for start in blocks}
    for start, targets in after.items():
        for target in targets:
            before[target].append(start)
    entry = function[0].address
    bodies: dict[int, set[int]] = {}
    for start, head in _retreating(entry, after):
        # a way back is a loop only if every way to it leads through its target
        if start not in _reachable(entry, after, without=head):
            bodies.setdefault(head, {head}).update(_reachable(start, before, without=head))
    return [_loop(body, list(bodies.values()), blocks) for body in bodies.values()]


def follow(instruction: Instruction) -> list[int]:
    """Return the addresses at which a function may go on after an instruction."""
    after = [] if instruction.flow in (JUMP, STOP) else [instruction.address + instruction.size]
    if instruction.flow in (JUMP, BRANCH) and instruction.target is not None:
        after.append(instruction.target)
    return after


def _loop(body: set[int], others: list[set[int]], blocks: Mapping[int, list[Instruction]]) -> Loop:
    inside = tuple(i for start in sorted(body) for i in blocks[start])
    depth = sum(body <= other for other in others)
    return Loop(inside, depth, not any(other < body for other in others))


def _blocks(function: Sequence[Instruction]) -> dict[int, list[Instruction]]:
    """Return address → the instructions that run one after the other from there."""
    jumps = [i for i in function if i.flow in (JUMP, BRANCH, STOP)]
    heads = {i.target for i in jumps if i.target is not None} | {i.address + i.size for i in jumps}
    blocks: dict[int, list[Instruction]] = {}
    start = None
    for instruction in function:
        if start is None or instruction.address in heads:
            start = instruction.address
            blocks[start] = []
        blocks[start].append(instruction)
    return blocks


def _successors(blocks: Mapping[int, list[Instruction]]) -> Edges:
    found: Edges = {}
    for start, block in blocks.items():
        found[start] = [target for target in follow(block[-1]) if target in blocks]
    return found


def _retreating(entry: int, edges: Edges) -> list[tuple[int, int]]:
    """Return the edges that lead back to a block on the way from `entry` to them."""
    found, seen, way = [], {entry}, {entry: iter(edges[entry])}
    while way:
        block = next(reversed(way))
        target = next(way[block], None)
        if target is None:
            del way[block]
        elif target in way:
            found.append((block, target))
        elif target not in seen:
            seen.add(target)
            way[target] = iter(edges[target])
    return found


def _reachable(start: int, edges: Edges, without: int) -> set[int]:
    """Return the blocks that can be reached from `start` on ways that avoid one block."""
    found: set[int] = set()
    waiting = [start]
    while waiting:
        block = waiting.pop()
        if block != without and block not in found:
            found.add(block)
            waiting += edges[block]
    return found
