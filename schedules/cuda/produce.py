"""produce on GPUs: a block of threads makes a row of an activation ready, in registers; a long row has
a block for each of its runs (`_apart.py`).

The chain that `fused_producers.py` describes goes from what was given to what look-ups read without a
look at memory in between: `_chain.py` has its steps, `_chain_ends.py` its ends. Threads wait for each
other where something belongs to a whole row: sums of a norm, the largest magnitude, the sums of digits.
"""

import functools
import json
from typing import Any

import tvm
from tvm.s_tir import Schedule
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from shiftadd_tvm.backend import Backend
from shiftadd_tvm.ops import CHAIN, OP, WAITS, lut_bits_group
from shiftadd_tvm.ops.lut_bits import DIGIT, Format
from shiftadd_tvm.schedules.cuda import _apart, _chain, _chain_ends, _row
from shiftadd_tvm.schedules.cuda._chain import SHARES
from shiftadd_tvm.schedules.cuda._runs import SPAN, Row

OPS = ("produce",)
BEGINS = ("join", "add", "activate", "activate_mul")
SUMS = 2  # that links need of a row at most


def schedule(sch: Schedule, backend: Backend) -> PrimFunc | None:
    """Return the kernel of a chain, or bind its stages where registers are too few."""
    function = sch.mod["main"]
    shapes = [tuple(int(size) for size in buffer.shape) for buffer in function.params]
    chain = json.loads(str(function.attrs[CHAIN]))
    if not _fits(chain, shapes):
        _row.share(sch)
        return None
    dtypes = [str(buffer.dtype) for buffer in function.params]
    return _function(chain, shapes, dtypes, backend.overlap).with_attr(WAITS, backend.overlap)


def _fits(chain: dict[str, Any], shapes: list[tuple[int, ...]]) -> bool:
    """Tell whether a chain can be made in registers."""
    row = Row(chain["inputs"], chain["apart"])
    calls = {op: (key, at) for op, key, at in chain["calls"]}
    rotation = calls.get("hadamard", ([1], []))[0][0]
    shares = shapes[calls["join"][1][1]] if "join" in calls else (0, 0, 0, 0)
    return (
        row.fits()
        and rotation <= SPAN
        and shares[1] * shares[3] <= SHARES
        and ("lut_bytes_build" not in calls or _chain_ends.fits_shared(row))
    )


def _function(
    chain: dict[str, Any], shapes: list[tuple[int, ...]], dtypes: list[str], overlap: bool
) -> PrimFunc:
    """Return the TIR function: operands of the chain, (the value that others read, or the two results of
    rows whose runs are apart,) built and scale."""
    row, count = Row(chain["inputs"], chain["apart"]), len(shapes)
    steps = _steps(row, chain, shapes, overlap)
    finish = _end(row, chain["calls"][-1][0], shapes[-2], shapes[-1])
    kernels = _apart.kernels if row.apart else _together
    body = kernels(row, steps, finish, count, shapes[-1])

    names = [f"given{i}" for i in range(count)]
    types = ", ".join(f'{n}: T.Buffer({s}, "{t}")' for n, s, t in zip(names, shapes, dtypes, strict=True))
    # how many tensors there are depends on the chain, and a function has a fixed list of them
    text = (
        f"@T.prim_func(s_tir=True, private=True)\ndef produce({types}):\n"
        f'    T.func_attr({{"tirx.noalias": True, "{OP}": "produce"}})\n    body(({", ".join(names)}))\n'
    )
    return tvm.script.from_source(text, {"T": T, "body": body})


def _together(row: Row, steps: Any, finish: Any, count: int, scale: tuple[int, ...]) -> Any:
    """Return the body of the kernel whose blocks have a row each."""

    @T.inline
    def body(given):
        i = T.launch_thread("blockIdx.x", scale[0])
        tx = T.launch_thread("threadIdx.x", 32 * row.warps)
        # without this bound the assembler aims at more blocks and spills
        T.attr(0, "tirx.launch_bounds_min_blocks_per_sm", 1)
        sums = T.alloc_buffer((SUMS, 32), "float32", scope="shared")
        x = T.alloc_buffer((row.held,), "float32", scope="local")
        weights = T.alloc_buffer((row.held,), "float32", scope="local")
        biases = T.alloc_buffer((row.held,), "float32", scope="local")
        packed = T.alloc_buffer((row.held,), "uint32", scope="local")
        v = T.alloc_buffer((2,), "float32", scope="local")
        q = T.alloc_buffer((row.held,), "int32", scope="local")
        u = T.alloc_buffer((2,), "uint32", scope="local")
        for n in T.unroll(row.held):
            packed[n] = T.uint32(0)
        steps(x, (weights, biases, packed), v, sums, given, i, tx // 32, tx % 32)
        _chain_ends.largest_of_row(x, u, row, tx // 32, tx % 32)
        finish(given[count - 2], given[count - 1], q, x, u, i, tx // 32, tx % 32)

    return body


def _steps(row: Row, chain: dict[str, Any], shapes: list[tuple[int, ...]], overlap: bool) -> Any:
    """Return the inlined code of the chain up to its end, whose operands are indices of all tensors."""
    links = chain["calls"][:-1]
    first: tuple[str, list[Any], list[int]] = ("", [], [0])
    if links and links[0][0] in BEGINS:
        first, *links = links
    elif links:  # the chain begins with a value as it is, the first operand of its first link
        (op, key, (value, *at)), *rest = links
        first, links = ("", [], [value]), [(op, key, at), *rest]
    found = [_chain.LINKS[op](row, key, at, shapes[at[0]]) for op, key, at in links]
    begin = _chain.begin(row, *first, shapes[first[2][0]])
    kept = [_chain.keep(row, len(shapes) - 3)] if chain["shared"] else []
    last = [_chain.keep(row, len(shapes) - 4)] if row.apart else []
    # parameters before the row: what makes it may not have ended yet
    wait = [_chain.wait] if overlap else []
    prepare, apply = ([getattr(link, part) for link in found] for part in ("prepare", "apply"))
    return functools.reduce(_chain.in_order, [*prepare, *wait, begin, *kept, *apply, *last])


def _end(row: Row, op: str, built: tuple[int, ...], scale: tuple[int, ...]) -> Any:
    """Return the inlined code that writes what is built and its scale, from the row and its largest
    magnitude."""
    grouped = op == "lut_bits_group_build"
    width = built[2] if grouped else (scale[1] - 1) * DIGIT
    form = Format("", width, "")
    if grouped:
        groups = scale[1] - 1
        columns = next(c for c in lut_bits_group.COLUMNS if -(-row.inputs // c) == groups)
        sum_up = _chain_ends.group_totals(row, form, columns, groups)
    else:
        sum_up = (_chain_ends.added_totals if row.apart else _chain_ends.totals)(row, form)
    make = {"lut_tables_build": _chain_ends.tables, "lut_bytes_build": _chain_ends.bytes_}
    write = make.get(op, _chain_ends.bits)(row, form, built[1])
    round_ = _chain_ends.rounded(row, form)

    @T.inline
    def finish(built, scale, q, x, u, i, warp, lane):
        round_(q, x, u)
        write(built, q, u, i, warp, lane)
        sum_up(scale, q, u, i, warp, lane)

    return finish
