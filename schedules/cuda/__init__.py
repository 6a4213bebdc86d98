"""NVIDIA GPUs through CUDA: a preset for each architecture, and `cuda` for the GPU of this machine."""

from shiftadd_tvm import cpu
from shiftadd_tvm.backend import Backend

WARP = 32
ROWS = 32  # of a row block: two tiles of the tensor cores, a row a lane
ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
ACTIVATIONS = ("fixed16", "fixed24", "shuffle16", "bytes16", "float32")
SHARED = {"sm_80": 163, "sm_86": 99, "sm_89": 99, "sm_90": 227, "sm_100": 227, "sm_120": 99}  # KiB
KEPT = 2048  # bytes of it for what stages have one of
EMULATED = ("sm_100", "sm_120")  # their compiler emulates binary tensor cores: shuffles come first
LEVELS = {"x86_64": {"mcpu": "x86-64-v2"}}  # what the calls around the kernels are compiled for


def _preset(arch: str) -> Backend:
    machine = cpu.machine()
    host = {"kind": "llvm", "mtriple": f"{machine}-linux-gnu", **LEVELS.get(machine, {})}
    target = {
        "kind": "cuda",
        "arch": arch,
        "max_threads_per_block": 1024,
        "max_shared_memory_per_block": 49152,
        "thread_warp_size": WARP,
        "host": host,
    }
    name = f"cuda-{arch.replace('_', '')}"
    first = "shuffle16" if arch in EMULATED else ACTIVATIONS[0]
    formats = (first, *(name for name in ACTIVATIONS if name != first))
    return Backend(
        *(name, "cuda", target, machine, (), "cuda", WARP, ROWS),
        device=arch,
        activations=formats,
        shared=(SHARED[arch] << 10) - KEPT,
    )


PRESETS = {preset.name: preset for preset in map(_preset, ARCHITECTURES)}
ALIAS, WITHOUT_GPU = "cuda", "cuda-sm80"
