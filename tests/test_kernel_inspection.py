"""What kernels are found to do: on the tiny model, on kernels that hide a product, on damaged files."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import kernels
import numpy as np
import pytest
import test_ops
import tvm
from command import call, call_here, fails, result
from conftest import Tiny
from tvm.ir import IRModule
from tvm.script import tirx as T

from shiftadd_tvm import backend, kernel_inspection, pipeline, presentation
from shiftadd_tvm.artifact import LIBRARY, MANIFEST
from shiftadd_tvm.control_flow import find_loops
from shiftadd_tvm.disassembly import BRANCH, JUMP, NEXT, STOP, Instruction
from shiftadd_tvm.errors import BadFileError, ShiftAddError, UnsupportedError
from shiftadd_tvm.files import sha256
from shiftadd_tvm.instruction_classes import CLASSES
from shiftadd_tvm.kernel_inspection import KernelCount, count_instructions, count_library
from shiftadd_tvm.machine_code import Code, Section
from shiftadd_tvm.ops import planes as order
from shiftadd_tvm.schedules.llvm._lookup import PRIMITIVES
from shiftadd_tvm.schedules.llvm._lookup_float import LOOKUPS

for library in ("iced_x86", "capstone", "elftools"):
    pytest.importorskip(library)

FROZEN = Path(__file__).parent / "frozen" / "artifact-v1" / LIBRARY
FREE, PRODUCTS = (
    ("lut_query", "lut_build", "shift", "hadamard"),
    ("dense", "gemm_fixed", "gemm_dense"),
)
TARGETS = {
    "x86_64": {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "x86-64-v3"},
    "aarch64": {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mattr": ["+neon"]},
}


def of_operator(ops: dict[str, dict], operator: str) -> list[dict]:
    found = [counts for name, counts in ops.items() if re.fullmatch(rf"{operator}\d*", name)]
    assert found, f"{operator} is not among {list(ops)}"
    return found


def test_the_tiny_model(tiny: Tiny) -> None:
    report = result("inspect", tiny.artifact, "--ops")
    assert report["kind"] == "artifact" and report["version"] == 1
    ops = report["ops"]
    for counts in ops.values():
        assert counts.keys() >= {"multiply", "add", "shift", "shuffle", "load"}
        assert counts["unknown"] == counts["whole"]["unknown"] == 0
        assert 0 < counts["data_instructions"] <= counts["instructions"] < counts["loop_bytes"]
    for counts in (c for operator in FREE for c in of_operator(ops, operator)):
        assert counts["multiplication_free"] is True and counts["calls"] == []
        assert counts["multiply"] == counts["whole"]["multiply"] == 0
    for counts in of_operator(ops, "lut_query"):
        # so few steps that the loop which rescales the sums may seem to run as often
        assert counts["add"] > 0 and counts["whole"]["shuffle"] > 0 and counts["loaded_bytes"] > 0
    for counts in (c for operator in PRODUCTS for c in of_operator(ops, operator)):
        assert counts["multiplication_free"] is False and counts["multiply"] > 0


def test_the_table(tiny: Tiny) -> None:
    text = call("inspect", tiny.artifact, "--ops").stdout
    row = r"^  lut_query\d*(?: and \d+ alike)? +((?:\d+ +){6})yes"
    found = [list(map(int, match.split())) for match in re.findall(row, text, re.MULTILINE)]
    assert {multiply for multiply, *_ in found} == {0}, text
    assert any(shuffle > 0 for _, _, _, shuffle, *_ in found), text  # few steps: some only rescale
    assert re.search(r"^  gemm_fixed.* no(?: \(the loop is undecided\))?$", text, re.MULTILINE)
    assert "effective bits" in text and "'" not in text
    assert "multiplication-free" not in call("inspect", tiny.artifact).stdout


def test_only_artifacts_have_kernels(tiny: Tiny) -> None:
    for path in (tiny.packed, tiny.source):
        fails(
            call_here("inspect", path, "--ops", cwd=tiny.root), 2, "--ops", str(path), "compile it"
        )


def test_without_the_disassembler(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("elftools.elf.elffile", "iced_x86", "capstone"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            if module == "elftools.elf.elffile":
                child = call_here("inspect", tiny.artifact, "--ops", cwd=tiny.root)
                fails(child, 3, "pip install 'shiftadd-tvm[inspect]'")
            else:
                machine = {"iced_x86": "x86_64", "capstone": "aarch64"}[module]
                with pytest.raises(UnsupportedError, match="pip install 'shiftadd-tvm"):
                    kernel_inspection.disassemble(bytes(16), 0, machine)


def test_the_frozen_library() -> None:
    """Libraries without a symbol table can be read: the bodies of parallel loops have no name."""
    counts = count_library(FROZEN)
    assert counts["lut_query"].multiplication_free and counts["lut_query"].loop["add"] > 0
    assert not counts["gemm_planes"].multiplication_free
    assert not count_instructions(FROZEN, "sample_soften").multiplication_free


LOOK_UPS = [
    (op, name)
    for op in ("lut_query", "lut_float_query", "lut_group")
    for name, preset in backend.presets().items()
    if not preset.device  # see test_cuda_kernels.py
]


@pytest.mark.parametrize(("op", "preset"), LOOK_UPS)
def test_the_look_up_of_every_preset(preset: str, op: str, tmp_path: Path) -> None:
    target, shape = backend.load(preset), test_ops.Shape(1, 256, 4096, 3, 2, seed=1)
    case = test_ops.CASES[op](shape, np.random.default_rng(0), target)
    executable, _ = pipeline.build(kernels.op_module(op, case.compute, case.arrays, ()), target)
    executable.mod.imports[0].write_to_file(str(tmp_path / "lut.o"), "o")
    count = count_instructions(tmp_path / "lut.o", op)
    assert count.multiplication_free is True and count.whole["multiply"] == count.hidden == 0
    # without vectors, groups are looked up in general registers: no loop stands out
    assert count.loop["add"] > 0 or not count.decided
    assert count.loaded_bytes > 0
    floats = op == "lut_float_query"
    if target.isa in (LOOKUPS if floats else PRIMITIVES):  # the loop is that of the look-ups
        assert count.loop["shuffle"] >= (8 if floats else 4)
    bits = target.rows * order.STEP  # of one step at least
    assert 0 < count.instructions_per_weight_bit(bits) == count.instructions / bits


@T.prim_func(s_tir=True)
def adder(x: T.Buffer((16, 64), "float32"), y: T.Buffer((16, 64), "float32")):
    for i in T.parallel(16):
        for j in T.vectorized(64):
            with T.sblock("y"):
                vi, vj = T.axis.remap("SS", [i, j])
                y[vi, vj] = y[vi, vj] + x[vi, vj]


@T.prim_func(s_tir=True)
def hider(x: T.Buffer((16, 64), "float32"), y: T.Buffer((16, 64), "float32")):
    for i in T.parallel(16):
        for j in T.vectorized(64):
            with T.sblock("y"):
                vi, vj = T.axis.remap("SS", [i, j])
                y[vi, vj] = y[vi, vj] + x[vi, vj] * y[vi, 63 - vj]


@T.prim_func(s_tir=True)
def caller(x: T.Buffer((16, 64), "float32"), y: T.Buffer((16, 64), "float32")):
    for i, j in T.grid(16, 64):
        with T.sblock("y"):
            vi, vj = T.axis.remap("SS", [i, j])
            y[vi, vj] = y[vi, vj] + T.call_extern("float32", "elsewhere", x[vi, vj])


def compiled(function: object, machine: str, folder: Path) -> KernelCount:
    module = IRModule({"kernel": function.with_attr("global_symbol", "kernel")})
    path = folder / f"{machine}.o"
    executable = tvm.compile(module, tvm.target.Target(TARGETS[machine]))
    executable.mod.write_to_file(str(path), "o")
    return count_instructions(path, "kernel")


@pytest.mark.parametrize("machine", TARGETS)
def test_a_hidden_product_is_found(machine: str, tmp_path: Path) -> None:
    """In the body of a parallel loop, which is a function of its own without a name."""
    honest = compiled(adder, machine, tmp_path)
    assert honest.multiplication_free and honest.loop["add"] > 0 and honest.loop["load"] > 0
    hidden = compiled(hider, machine, tmp_path)
    assert not hidden.multiplication_free and hidden.loop["multiply"] > 0


@pytest.mark.parametrize("machine", TARGETS)
def test_what_is_computed_elsewhere_proves_nothing(machine: str, tmp_path: Path) -> None:
    count = compiled(caller, machine, tmp_path)
    assert count.foreign == ("elsewhere",) and count.loop["multiply"] == 0
    assert count.multiplication_free is None


@pytest.mark.parametrize(
    ("code", "products", "hidden"),
    [
        # mov eax, [rdi]; imul eax, esi; add edx, eax; add rdi, 4; dec rcx; jne; ret
        ("8b070fafc601c24883c70448ffc975f0c3", 1, 0),
        # imul rax, rcx, 48; lea rdx, [rdi+rax]; movups xmm1, [rdx+16]; addps; dec rcx; jne; ret
        ("486bc130488d14070f104a100f58c148ffc975ecc3", 0, 0),
        # imul rax, rcx, 48; movups xmm1, [rdi+rax]; imul r8d, esi; movd xmm2, r8d; paddd; paddd; ...
        ("486bc1300f100c07440fafc666410f6ed0660ffec2660ffec148ffc975e2c3", 1, 0),
        # imul rax, rcx, 48; mov [rsp+8], rax; movups xmm1, [rdi+rax]; addps; dec rcx; jne; ret
        ("486bc13048894424080f100c070f58c148ffc975ebc3", 0, 1),
        # imul rax, rcx, 48; mov [rsi+8], rax; movups xmm1, [rdi+rax]; addps; dec rcx; jne; ret
        ("486bc130488946080f100c070f58c148ffc975ecc3", 1, 0),
    ],
    ids=["sum", "address", "both", "address kept on the stack", "address kept elsewhere"],
)
def test_products_of_general_registers(
    code: str, products: int, hidden: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They count where they are data, not where they are addresses."""
    (tmp_path / "x").touch()
    found = Code("x86_64", [Section(".text", 0, bytes.fromhex(code))], {"f": 0}, [0])
    monkeypatch.setattr(kernel_inspection, "read_code", lambda content, name: found)
    count = count_instructions(tmp_path / "x", "f")
    assert count.loop["multiply"] == count.whole["multiply"] == products and count.hidden == hidden
    assert count.multiplication_free is (None if hidden and not products else products == 0)


def test_a_body_that_no_table_names_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # lea rdi, [rip+7]; call [rip+0x100]; ret; and what rdi points to: mulps xmm1, xmm2; ret
    content = bytes.fromhex("488d3d07000000ff1500010000c30f59cac3")
    pointer = {0x10D: "__TVMBackendParallelLaunch"}
    (tmp_path / "x").touch()
    found = Code("x86_64", [Section(".text", 0, content)], {"f": 0}, [0], pointer)
    monkeypatch.setattr(kernel_inspection, "read_code", lambda content, name: found)
    count = count_instructions(tmp_path / "x", "f")
    assert count.foreign == () and count.whole["multiply"] > 0
    found.slots[0x10D] = "elsewhere"
    assert count_instructions(tmp_path / "x", "f").foreign == ("elsewhere",)


def steps(*flows: tuple[str, int | None]) -> list[Instruction]:
    return [Instruction(i, 1, "x", flow, target) for i, (flow, target) in enumerate(flows)]


def test_loops_are_nested() -> None:
    function = steps(
        (NEXT, None),
        (NEXT, None),
        (NEXT, None),
        (BRANCH, 2),
        (BRANCH, 1),
        (BRANCH, 5),
        (STOP, None),
    )
    found = {
        (loop.instructions[0].address, loop.depth, loop.innermost) for loop in find_loops(function)
    }
    assert found == {(1, 1, False), (2, 2, True), (5, 1, True)}


@pytest.mark.parametrize(("vectors", "decided"), [((8, 3), True), ((8, 6), False), ((6, 8), False)])
def test_a_loop_is_decided_where_nothing_comes_near_it(
    vectors: tuple[int, int], decided: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two loops, one after the other, each of some addps and a branch back to its first."""
    loops = [b"\x0f\x58\xc1" * n + b"\x75" + bytes([256 - 3 * n - 2]) for n in vectors]
    (tmp_path / "x").touch()
    found = Code("x86_64", [Section(".text", 0, b"".join(loops) + b"\xc3")], {"f": 0}, [0])
    monkeypatch.setattr(kernel_inspection, "read_code", lambda content, name: found)
    count = count_instructions(tmp_path / "x", "f")
    assert count.loop["add"] == max(vectors) and count.decided is decided
    text = presentation.operations({"f": count.to_dict()})
    assert text.endswith("yes" if decided else "yes (the loop is undecided)")


def test_a_verdict_is_read_as_it_is_meant() -> None:
    none = dict.fromkeys((*CLASSES, "instructions"), 0) | {"calls": [], "loop_decided": True}
    verdicts = {True: "yes", False: "no", None: "undecided"}
    for free, verdict in verdicts.items():
        text = presentation.operations({"lut_query": {**none, "multiplication_free": free}})
        assert text.endswith(f"  {verdict}")


def test_a_jump_back_from_code_out_of_line_is_no_loop() -> None:
    function = steps((BRANCH, 3), (NEXT, None), (STOP, None), (NEXT, None), (JUMP, 1))
    assert find_loops(function) == [] == find_loops([])


def damage(content: bytes) -> dict[str, bytes]:
    size = len(content)
    cuts = {f"{share:.0%}": content[: int(size * share)] for share in (0, 0.0001, 0.01, 0.5, 0.999)}
    return {**cuts, "no ELF": b"PK" * 500, "last byte": content[:-1]}


@pytest.mark.parametrize("case", damage(b""))
def test_a_damaged_library(case: str, tmp_path: Path) -> None:
    path = tmp_path / LIBRARY
    path.write_bytes(damage(FROZEN.read_bytes())[case])
    with pytest.raises(
        BadFileError, match=f"{LIBRARY} cannot be read as a library .*compile it again"
    ):
        count_library(path)


def test_flipped_bytes_of_the_header_are_survived(tmp_path: Path) -> None:
    content, path = FROZEN.read_bytes(), tmp_path / LIBRARY
    outcomes = set()
    for place in range(0, 64, 3):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        try:
            count_instructions(path, "lut_build")
        except ShiftAddError as error:
            outcomes.add(type(error))
    assert outcomes == {BadFileError, UnsupportedError}


def test_a_library_without_kernels(tmp_path: Path) -> None:
    content = FROZEN.read_bytes().replace(b"__tvm_ffi_", b"__tvm_xxx_")
    (tmp_path / LIBRARY).write_bytes(content)
    with pytest.raises(BadFileError, match="exports no linear kernel"):
        count_library(tmp_path / LIBRARY)
    with pytest.raises(BadFileError, match="holds no function lut_query"):
        count_instructions(tmp_path / LIBRARY, "lut_query")
    with pytest.raises(BadFileError, match="cannot be read: No such file"):
        count_library(tmp_path / "absent.so")


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda content: content[: len(content) // 2],
    "no library": lambda content: b"nothing",
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_command_on_a_damaged_library(tiny: Tiny, tmp_path: Path, change: str) -> None:
    """Even where the manifest vouches for it."""
    artifact = shutil.copytree(tiny.artifact, tmp_path / "artifact")
    library, manifest = artifact / LIBRARY, artifact / MANIFEST
    library.write_bytes(CHANGES[change](library.read_bytes()))
    stated = json.loads(manifest.read_text())
    stated["files"][LIBRARY] = {"bytes": library.stat().st_size, "sha256": sha256(library)}
    manifest.write_text(json.dumps(stated))
    fails(call_here("inspect", artifact, "--ops", cwd=tmp_path), 4, LIBRARY, "expected a whole ELF")
