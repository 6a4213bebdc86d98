"""CPU targets through LLVM: presets by instruction set, widest first (the first that fits wins)."""

from shiftadd_tvm.backend import Backend

# num-cores is part of TVM's target but decides nothing here; fixed, so that the bytes of a library
# do not depend on the machine that compiled it
CORES = 4


def _x86(
    name: str,
    level: str,
    isa: str,
    lanes: int,
    rows: int,
    features: tuple[str, ...],
    beyond: dict[str, str] | None = None,
) -> Backend:
    """Return a preset for x86-64; `beyond` maps Linux's name of a feature beyond `level` to LLVM's."""
    beyond = beyond or {}
    target: dict[str, object] = {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": level}
    target |= {"mattr": [f"+{feature}" for feature in beyond.values()]} if beyond else {}
    target |= {"num-cores": CORES}
    return Backend(name, "llvm", target, "x86_64", (*features, *beyond), isa, lanes, rows)


def _arm(
    name: str, features: dict[str, str], cpu: str = "", part: int | None = None, model: str = ""
) -> Backend:
    """Return a preset for 64-bit ARM; `features` maps Linux's name of a feature to LLVM's.

    `cpu` is LLVM's name of the one processor that the preset is for, `part` its number among those
    that Arm designed, `model` the processor whose timing llvm-mca knows best for it.
    """
    target: dict[str, object] = {"kind": "llvm", "mtriple": "aarch64-linux-gnu"}
    target |= {"mcpu": cpu} if cpu else {}
    wanted = [*(f"+{feature}" for feature in features.values()), *(UNUSED if cpu else ())]
    target |= {"mattr": wanted, "num-cores": CORES}
    parts = () if part is None else ((ARM_LIMITED, part),)
    needed = tuple(features)
    return Backend(name, "llvm", target, "aarch64", needed, "neon", 4, 64, parts, model or cpu)


AVX2 = ("avx2", "bmi2", "f16c", "fma")
AVX512 = ("avx512bw", "avx512dq", "avx512f", "avx512vl")
VNNI = {"avx512_vnni": "avx512vnni"}  # sums of products in prefill: since Cascade Lake and Zen 4

# What compilers may use for a processor beyond the first ARMv8, as Linux and LLVM name it. The
# look-ups need NEON alone; whatever else a processor has serves prefill and the elementwise rest.
NEON = {"asimd": "neon"}
V8_2 = NEON | {
    "asimddp": "dotprod",
    "asimdhp": "fullfp16",
    "asimdrdm": "rdm",
    "atomics": "lse",
    "crc32": "crc",
    "lrcpc": "rcpc",
}
V1 = V8_2 | {"bf16": "bf16", "fcma": "complxnum", "i8mm": "i8mm", "jscvt": "jsconv"}
# The kernels are written for vectors of 128 bits; all that LLVM made of SVE was addresses in their loops.
UNUSED = ("-sve",)
ARM_LIMITED = 0x41  # the implementer's number in a processor's identification register

PRESETS = {
    preset.name: preset
    for preset in (
        _x86("x86-avx512", "x86-64-v4", "avx512", 16, 64, AVX2 + AVX512, VNNI),
        _x86("x86-avx2", "x86-64-v3", "avx2", 8, 64, AVX2),
        _x86("x86-64", "x86-64-v2", "generic", 8, 32, ("sse4_2", "ssse3")),
        _arm("arm-neoverse-v1", V1, "neoverse-v1", 0xD40),
        _arm("arm-neoverse-n1", V8_2, "neoverse-n1", 0xD0C),
        # the core that Neoverse N1 was made from; LLVM 19 still times it as a Cortex-A57
        _arm("arm-cortex-a76", V8_2, "cortex-a76", 0xD0B, "neoverse-n1"),
        _arm("arm-cortex-a72", NEON | {"crc32": "crc"}, "cortex-a72", 0xD08),
        _arm("arm", NEON),
    )
}
