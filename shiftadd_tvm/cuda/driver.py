"""The CUDA driver of this machine: whether there is one, and which GPUs it has.

Everything is asked of `libcuda.so.1` itself, by its C interface; nothing is kept loaded that a process
without a GPU would miss.
"""

import ctypes
import functools
from dataclasses import dataclass

DRIVER = "libcuda.so.1"
CAPABILITY = (75, 76)  # of the driver's device attributes: major, minor
ENTRY_POINTS = (  # all that TVM's runtime for CUDA asks of a driver
    *("cuDeviceGetName", "cuFuncSetAttribute", "cuGetErrorName", "cuGetErrorString"),
    *("cuLaunchKernelEx", "cuModuleGetFunction", "cuModuleLoadData", "cuModuleUnload"),
    "cuTensorMapEncodeTiled",
)


@dataclass(frozen=True)
class Gpu:
    """One GPU: its name, its compute capability, and its bytes of memory."""

    name: str
    capability: tuple[int, int]
    memory: int

    @property
    def arch(self) -> str:
        """The architecture as compilers name it, such as "sm_90"."""
        return f"sm_{self.capability[0]}{self.capability[1]}"

    def runs(self, arch: str) -> bool:
        """Tell whether it runs machine code for `arch`: of the same major version, not a later minor."""
        number = int(arch.removeprefix("sm_"))
        return self.capability[0] == number // 10 and self.capability[1] >= number % 10


def present() -> bool:
    """Tell whether a driver is installed."""
    try:
        ctypes.CDLL(DRIVER)
    except OSError:
        return False
    return True


@functools.cache
def gpu() -> Gpu | None:
    """Return the first GPU of this machine; None without a driver or without a GPU."""
    try:
        return _first(ctypes.CDLL(DRIVER))
    except (OSError, AttributeError):  # no driver, or a stand-in that lacks its functions
        return None


def _first(library: ctypes.CDLL) -> Gpu | None:
    device, count = ctypes.c_int(), ctypes.c_int()
    if library.cuInit(0) or library.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return None
    if library.cuDeviceGet(ctypes.byref(device), 0):
        return None
    name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
    numbers = [ctypes.c_int() for _ in CAPABILITY]
    statuses = [
        library.cuDeviceGetName(name, len(name), device),
        library.cuDeviceTotalMem_v2(ctypes.byref(memory), device),
        *(
            library.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
            for number, attribute in zip(numbers, CAPABILITY, strict=True)
        ),
    ]
    if any(statuses):
        return None
    return Gpu(name.value.decode(), (numbers[0].value, numbers[1].value), memory.value)


def lacks(arch: str) -> str:
    """Return in words what this machine lacks to run code for `arch`; empty if nothing."""
    if not present():
        return f"a CUDA driver ({DRIVER})"
    found = gpu()
    if found is None:
        return "a GPU that the CUDA driver knows"
    return "" if found.runs(arch) else f"a GPU for {arch} (this one is {found.name}, {found.arch})"
