"""Kernels for CUDA without a GPU: the code that is generated, run on the processor, and its machine code.

The emulation is `cuda_emulated.h`; look-ups must equal their references bit for bit.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cuda_emulation
import cuda_ptx
import pytest
from cuda_emulation import Emulator

from shiftadd_tvm.cuda import nvrtc, toolkit

SHAPES = 200
READ = ("bits", "tables", "bytes")
GROUPED = 32
SHARED = 8
CHAINS = 60
APART = 40
HALVES = 12
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    return Emulator(tmp_path_factory.mktemp("gpu"))


def run(emulator: Emulator, *arguments: str, **gpu: object) -> list[tuple[str, str]]:
    """Return the cases of a group and what differs in each, from a child with the emulated GPU."""
    environment = emulator.environment(Path("none"), **gpu)
    path = os.environ.get("PYTHONPATH", "")
    child = subprocess.run(
        [sys.executable, str(HERE / "cuda_cases.py"), arguments[0], str(emulator.folder), *arguments[1:]],
        env={**environment, "PYTHONPATH": f"{HERE}:{path}".rstrip(":")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr[-3000:]
    return [tuple(pair) for pair in json.loads(child.stdout.splitlines()[-1])]


OPERATORS = ("hostile", "elementwise", "attention", "parts", "sampling", "in_place")


@pytest.mark.parametrize("group", OPERATORS)
def test_operators_give_what_their_references_give(group: str, emulator: Emulator) -> None:
    found = run(emulator, group)
    assert found and not [case for case in found if case[1]]


def test_a_new_token_is_attended_to_in_any_order_of_blocks(emulator: Emulator) -> None:
    """Of blocks that share a key head, one writes it: the others may have run before it, or not yet."""
    found = run(emulator, "parts", "1", "BEGIN_BACKWARD=true")
    assert len(found) == 6 and not [case for case in found if case[1]]


def test_look_ups_equal_the_references_on_drawn_shapes(emulator: Emulator) -> None:
    found = run(emulator, "lookups", str(SHAPES))
    queries = [name for name, _ in found if name.endswith("_query")]
    kinds = {f"lut_{read}_{part}" for read in READ for part in ("build", "query")}
    assert len(queries) == SHAPES and kinds == {name for name, _ in found}
    assert not [case for case in found if case[1]]


def test_groups_equal_the_references_on_drawn_shapes(emulator: Emulator) -> None:
    found = run(emulator, "groups", str(GROUPED))
    names = [name for name, _ in found]
    assert names.count("lut_bits_group") == GROUPED and "lut_bits_group_build" in names
    assert not [case for case in found if case[1]]


def test_the_baseline_of_shared_tables_agrees_on_drawn_shapes(emulator: Emulator) -> None:
    found = run(emulator, "shared_tables", str(SHARED))
    assert len(found) == SHARED and not [case for case in found if case[1]]


@pytest.mark.parametrize("arch", [80, 86])
def test_long_rows_fit_what_threads_share(arch: int, emulator: Emulator) -> None:
    found = run(emulator, "long", ARCH=arch)
    assert found and not [case for case in found if case[1]]


def test_products_in_half_precision_agree_on_drawn_shapes(emulator: Emulator) -> None:
    found = run(emulator, "halves", str(HALVES))
    assert len(found) == 2 * HALVES and not [case for case in found if case[1]]


def test_chains_in_one_kernel_equal_the_references(emulator: Emulator) -> None:
    found = run(emulator, "chains", str(CHAINS))
    assert len(found) == CHAINS and not [case for case in found if case[1]]


def test_long_chains_in_two_kernels_equal_the_references(emulator: Emulator) -> None:
    """The row and the peaks of its runs as well, whatever lay in memory before."""
    found = run(emulator, "apart", str(APART))
    assert len(found) == APART and not [case for case in found if case[1]]


@pytest.mark.parametrize(
    "wrong",
    [
        "FRAGMENT_ROW(lane,r)=(lane)/4+8*((r)>>1)",  # the two rows of a lane in another order
        "FRAGMENT_ROW(lane,r)=(lane)%8+8*((r)&1)",  # lanes in another order
    ],
)
def test_a_wrong_map_of_fragments_is_found(wrong: str, emulator: Emulator) -> None:
    found = run(emulator, "lookups", "6", wrong)
    bad = {name for name, difference in found if difference}
    assert bad == {"lut_bits_query", "lut_bytes_query"}


@pytest.fixture(scope="module")
def source(emulator: Emulator) -> str:
    """The CUDA source of queries of 4096 inputs and more, as they are compiled for a model."""
    run(emulator, "large")
    return (emulator.folder / "large0.cc").read_text()


def machine_code(source: str, arch: str = "sm_90") -> nvrtc.Compiled:
    begin, end = source.index("\n"), source.index('extern "C" const emulation::Entry')
    return nvrtc.Nvrtc(toolkit.find()).compile(source[begin:end], arch)


@pytest.fixture(scope="module")
def compiled(source: str) -> nvrtc.Compiled:
    return machine_code(source)


def test_the_emulation_runs_the_text_that_is_compiled(source: str) -> None:
    """Instructions stand in functions of their own, and nowhere else."""
    functions = re.findall(r"#ifndef SHIFTADD_EMULATED\n(.*)\n#endif", source)
    assert len(functions) >= 5
    rest = source
    for function in functions:
        rest = rest.replace(function, "")
    assert "asm" not in re.sub(r"#.*__asm__.*|__asm__ __volatile__|//.*", "", rest)
    emulated = (HERE / "cuda_emulated.h").read_text()
    for function in functions:
        name = re.search(r"void (\w+)\(", function)[1]
        assert f"static inline void {name}(" in emulated


def test_decode_kernels_multiply_no_data(compiled: nvrtc.Compiled) -> None:
    kernels = cuda_ptx.kernels(compiled.ptx)
    assert len(kernels) == 5
    for name, kernel in kernels.items():
        assert not cuda_ptx.float_products(kernel), name
        assert not cuda_ptx.products_of_data(kernel), name


def test_a_product_of_data_would_be_found() -> None:
    for body in (
        "mul.lo.s32 %r1, %r2, %r3;\nadd.s32 %r4, %r1, 1;\nst.global.u32 [%rd1], %r4;",
        "mul.lo.s32 %r1, %r2, 3;\nmov.u32 %r5, %r1;\nred.shared.add.u32 [%r9], %r5;",
    ):
        assert cuda_ptx.products_of_data(body)
    address = "mul.wide.s32 %rd1, %r2, 4;\nadd.s64 %rd3, %rd1, %rd2;\nst.global.u32 [%rd3], %r4;"
    assert not cuda_ptx.products_of_data(address)
    assert cuda_ptx.float_products("fma.rn.f32 %f1, %f2, %f3, %f4;")


def test_nothing_spills(compiled: nvrtc.Compiled) -> None:
    found = nvrtc.usage(compiled.log)
    assert len(found) == 5
    assert all(usage.spill_bytes == 0 and usage.registers <= 128 for usage in found.values())


def test_loads_are_wide_and_come_first(compiled: nvrtc.Compiled, tmp_path: Path) -> None:
    """In the machine code: planes come in 16 bytes a lane, and of one token's query all before the first
    product: 3 planes of 32 rows and 256 inputs are 6 loads; case 4 has groups, two of them a step."""
    found = cuda_ptx.machine_code(compiled.cubin, tmp_path)
    place = lambda lines, pattern: [i for i, line in enumerate(lines) if re.search(pattern, line)]
    planes = {name: place(lines, r"LDG\S*\.NA\b") for name, lines in found.items()}
    products = {name: place(lines, "BMMA") for name, lines in found.items()}
    assert all(planes.values()) and [n for n in found if not products[n]] == ["case3_kernel"]
    assert len(products["case4_kernel"]) == 3 * 2 * 2 * 2  # planes, tiles, digits, groups
    for name in ("case0_kernel", "case2_kernel", "case4_kernel"):  # 16 and 24 bits, groups
        assert len(planes[name]) == 6 and max(planes[name]) < min(products[name]), name
        # the disassembler prints one of the six without its width; in PTX all of them have it
        assert sum(".128" in found[name][i] for i in planes[name]) >= 5, name
        body = cuda_ptx.kernels(compiled.ptx)[name]
        assert body.count("ld.global.nc.L1::no_allocate.v4.u32") == 6, name


def test_many_tokens_multiply_bytes_on_every_gpu(emulator: Emulator, tmp_path: Path) -> None:
    """The instruction for bytes is there on every GPU, and nothing spills."""
    assert not [case for case in run(emulator, "large_bytes") if case[1]]
    source = (emulator.folder / "large_bytes0.cc").read_text()
    for arch in ("sm_80", "sm_90", "sm_120"):
        made = machine_code(source, arch)
        assert all(usage.spill_bytes == 0 for usage in nvrtc.usage(made.log).values()), arch
        for name, lines in cuda_ptx.machine_code(made.cubin, tmp_path).items():
            products = [line for line in lines if "IMMA" in line]
            assert products and not any("BMMA" in line for line in lines), name
            # of bits and bytes without a sign, and of those with one
            kinds = {("U8.S8" in line, "U8.U8" in line) for line in products}
            assert kinds == {(True, False), (False, True)}, name


# launches the one kernel of a library, of one pointer
LAUNCHER = """import ctypes, sys
library, dims = ctypes.CDLL(sys.argv[1]), ctypes.c_uint * 3
table = ctypes.addressof(ctypes.c_char.in_dll(library, "emulated_kernels"))
entry = ctypes.c_void_p.from_address(table + 8)
def launch(address, blocks, threads):
    place = ctypes.c_void_p(address)
    given = (ctypes.c_void_p * 1)(ctypes.addressof(place))
    sizes = dims(blocks, 1, 1), dims(threads, 1, 1)
    library.emulated_launch(entry, *sizes, ctypes.c_size_t(0), given)
"""


def test_the_emulator_ends_a_program_that_no_gpu_could_run(emulator: Emulator) -> None:
    """A vote in one branch only, and a load that is not aligned."""
    head = 'static void shiftadd_ballot(void*, unsigned);\nextern "C" __global__ void '
    for body, reason in (
        ("odd(unsigned* x) { if (threadIdx.x % 2) shiftadd_ballot(x, 1u); }", "without all its lanes"),
        ("off(unsigned* x) { unsigned r[4]; shiftadd_load16(r, x + 1); }", "not aligned"),
    ):
        library = emulator.kernels(head.splitlines()[1] + body, "broken")
        code = (
            f"{LAUNCHER}"
            "memory = (ctypes.c_uint64 * 64)()\n"
            "launch((ctypes.addressof(memory) + 63) & -64, 1, 32)"
        )
        child = subprocess.run(
            [sys.executable, "-c", code, str(library)], capture_output=True, text=True, check=False
        )
        assert child.returncode == 86 and reason in child.stderr, child.stderr


RACES = {  # what one launch after another gives, where something is missing
    "a barrier": (
        "(unsigned* x) { __shared__ unsigned s[64]; s[threadIdx.x] = x[threadIdx.x];"
        " x[threadIdx.x] = s[(threadIdx.x + 32) % 64] + 1; }",
        (1, 64),
    ),
    "an order of blocks": (
        "(unsigned* x) { if (threadIdx.x == 0) x[0] = 2 * x[0] + blockIdx.x; }",
        (2, 32),
    ),
}


@pytest.mark.parametrize("missing", RACES)
def test_the_emulator_shows_what_depends_on_an_order(missing: str, emulator: Emulator) -> None:
    """Other numbers come of the same launch when it is repeated: once in each order."""
    body, (blocks, threads) = RACES[missing]
    library = emulator.kernels(f'extern "C" __global__ void racing{body}', f"race{blocks}")
    code = (
        f"{LAUNCHER}"
        "found = []\n"
        "for turn in range(2):\n"
        "    memory = (ctypes.c_uint * 64)(*range(64))\n"
        "    launch(ctypes.addressof(memory), *map(int, sys.argv[2:]))\n"
        "    found.append(list(memory))\n"
        "sys.exit(found[0] != found[1])"
    )
    command = [sys.executable, "-c", code, str(library), str(blocks), str(threads)]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    assert child.returncode == 1 and not child.stderr, child.stderr


def test_headers_of_the_emulation_are_here() -> None:
    assert (cuda_emulation.HERE / "cuda_emulated.h").is_file()
