"""CPU targets through LLVM: presets by instruction set, widest first (the first that fits wins)."""

from shiftadd_tvm.backend import Backend

# num-cores is part of TVM's target but decides nothing here; fixed, so that the bytes of a library
# do not depend on the machine that compiled it
CORES = 4


def _x86(
    name: str, level: str, isa: str, lanes: int, rows: int, features: tuple[str, ...]
) -> Backend:
    target = {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": level, "num-cores": CORES}
    return Backend(name, "llvm", target, "x86_64", features, isa, lanes, rows)


def _arm(name: str, isa: str, lanes: int, rows: int, features: dict[str, str]) -> Backend:
    """Return a preset for 64-bit ARM; `features` maps Linux's name of a feature to LLVM's."""
    wanted = [f"+{feature}" for feature in features.values()]
    target = {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mattr": wanted, "num-cores": CORES}
    return Backend(name, "llvm", target, "aarch64", tuple(features), isa, lanes, rows)


AVX2 = ("avx2", "bmi2", "f16c", "fma")
AVX512 = ("avx512bw", "avx512dq", "avx512f", "avx512vl")

PRESETS = {
    preset.name: preset
    for preset in (
        _x86("x86-avx512", "x86-64-v4", "avx512", 16, 64, AVX2 + AVX512),
        _x86("x86-avx2", "x86-64-v3", "avx2", 8, 64, AVX2),
        _x86("x86-64", "x86-64-v2", "generic", 8, 32, ("sse4_2", "ssse3")),
        _arm("arm", "neon", 4, 64, {"asimd": "neon"}),
    )
}
