"""The GPU of this machine by the driver's C interface: memory, machine code, graphs and their times.

Part of the programs that run where the GPU is (`measuring.py`, `timing.py`): a driver and Python 3.10 or
newer are all that they need there.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

RELAXED = 2  # the mode of capturing
BLOCKING = 0
MAJOR, MINOR, PROCESSORS = 75, 76, 16  # attributes of a device
OVERLAPPING = 6  # an attribute of a launch: it may begin before the one before it has ended


Fields = dict[str, Any]
Program = Callable[..., None]


class MeasureError(Exception):
    """What stops a program, in one sentence."""


class Attribute(ctypes.Structure):
    """An attribute of a launch, as the driver takes it: which one, and a whole number."""

    _fields_ = (("which", ctypes.c_uint64), ("value", ctypes.c_int), ("rest", ctypes.c_char * 60))


class Launch(ctypes.Structure):
    """A launch, as the driver takes it: grid, block and shared memory, and attributes."""

    _fields_ = (
        ("sizes", ctypes.c_uint * 7),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(Attribute)),
        ("count", ctypes.c_uint),
    )


class Gpu:
    """The driver's C interface, and a context on the first GPU."""

    def __init__(self) -> None:
        """Load the driver; raises `MeasureError` without one, or without a GPU."""
        try:
            self._driver = ctypes.CDLL("libcuda.so.1")
        except OSError:
            raise MeasureError("This machine lacks a CUDA driver (libcuda.so.1).") from None
        device, context, count = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_int()
        self("cuInit", 0)
        self("cuDeviceGetCount", ctypes.byref(count))
        if not count.value:
            raise MeasureError("This machine lacks a GPU that the CUDA driver knows.")
        self("cuDeviceGet", ctypes.byref(device), 0)
        self("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self("cuCtxSetCurrent", context)
        self._device, self.stream = device, ctypes.c_void_p()
        self("cuStreamCreate", ctypes.byref(self.stream), BLOCKING)

    def __call__(self, name: str, *arguments: Any) -> None:
        """Call a function of the driver; raises `MeasureError` where it fails."""
        status = getattr(self._driver, name)(*arguments)
        if status:
            text = ctypes.c_char_p()
            self._driver.cuGetErrorName(status, ctypes.byref(text))
            raise MeasureError(f"{name} failed ({(text.value or b'?').decode()})")

    def describe(self) -> dict[str, str]:
        """Return what times depend on."""
        name, version = ctypes.create_string_buffer(256), ctypes.c_int()
        self("cuDeviceGetName", name, len(name), self._device)
        numbers = [self.attribute(which) for which in (MAJOR, MINOR)]
        self("cuDriverGetVersion", ctypes.byref(version))
        return {
            "gpu": name.value.decode(),
            "arch": f"sm_{numbers[0]}{numbers[1]}",
            "driver": f"{version.value // 1000}.{version.value % 1000 // 10}",
        }

    def attribute(self, which: int) -> int:
        """Return a number of the device."""
        number = ctypes.c_int()
        self("cuDeviceGetAttribute", ctypes.byref(number), which, self._device)
        return number.value

    def memory(self, size: int) -> ctypes.c_uint64:
        """Return the address of so many bytes of the GPU's memory."""
        address = ctypes.c_uint64()
        self("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        return address

    def upload(self, data: bytes) -> ctypes.c_uint64:
        """Return the address of a copy of `data` on the GPU."""
        address = self.memory(len(data))
        self("cuMemcpyHtoD_v2", address, data, ctypes.c_size_t(len(data)))
        return address

    def copy(self, address: ctypes.c_uint64, size: int) -> ctypes.c_uint64:
        """Return the address of another copy of what is on the GPU."""
        other = self.memory(size)
        self("cuMemcpyDtoD_v2", other, address, ctypes.c_size_t(size))
        return other

    def download(self, address: ctypes.c_uint64, size: int) -> bytes:
        """Return the bytes at an address, once everything before has been done."""
        self.wait()
        data = ctypes.create_string_buffer(size)
        self("cuMemcpyDtoH_v2", data, address, ctypes.c_size_t(size))
        return data.raw

    def wait(self) -> None:
        """Wait for all that was asked for."""
        self("cuStreamSynchronize", self.stream)

    def event(self) -> ctypes.c_void_p:
        """Return a new event."""
        made = ctypes.c_void_p()
        self("cuEventCreate", ctypes.byref(made), 0)
        return made

    def kernel(self, image: bytes, name: str) -> ctypes.c_void_p:
        """Return a kernel of a cubin."""
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self("cuModuleLoadData", ctypes.byref(module), image)
        self("cuModuleGetFunction", ctypes.byref(function), module, name.encode())
        return function

    def launch(
        self,
        kernel: Any,
        grid: list[int],
        block: list[int],
        addresses: list[ctypes.c_uint64],
        overlapping: bool = False,
    ) -> None:
        """Run a kernel with these arguments; `overlapping`: it may begin before the one before ends."""
        given = (ctypes.c_void_p * len(addresses))(*(ctypes.addressof(a) for a in addresses))
        attribute = Attribute(OVERLAPPING, 1)
        sizes = (ctypes.c_uint * 7)(*grid, *block, 0)
        made = Launch(sizes, self.stream, ctypes.pointer(attribute), int(overlapping))
        self("cuLaunchKernelEx", ctypes.byref(made), kernel, given, None)

    def program(self, image: bytes, launches: list[Fields]) -> Program:
        """Return what runs the launches of a cubin with the addresses of all arguments."""
        kernels = [(self.kernel(image, one["kernel"]), one) for one in launches]

        def run(addresses: list[ctypes.c_uint64], overlapping: bool = False) -> None:
            for kernel, one in kernels:
                given = [addresses[at] for at in one["order"]]
                self.launch(kernel, one["grid"], one["block"], given, overlapping)

        return run

    def captured(self, work: Callable[[], None]) -> ctypes.c_void_p:
        """Return a graph of what `work` launches."""
        graph, made = ctypes.c_void_p(), ctypes.c_void_p()
        self("cuStreamBeginCapture_v2", self.stream, RELAXED)
        work()
        self("cuStreamEndCapture", self.stream, ctypes.byref(graph))
        self("cuGraphInstantiateWithFlags", ctypes.byref(made), graph, ctypes.c_ulonglong(0))
        return made

    def seconds(self, graph: Any, start: Any, end: Any) -> float:
        """Return how long a graph takes."""
        self("cuEventRecord", start, self.stream)
        self("cuGraphLaunch", graph, self.stream)
        self("cuEventRecord", end, self.stream)
        self("cuEventSynchronize", end)
        taken = ctypes.c_float()
        self("cuEventElapsedTime", ctypes.byref(taken), start, end)
        return taken.value / 1e3


def check_fits(path: str, arch: str, device: Fields) -> None:
    """Raise `MeasureError` unless a GPU, as `Gpu.describe` has it, runs machine code for `arch`."""
    # of the same major version, and not of an earlier minor one
    if device["arch"][:-1] != arch[:-1] or device["arch"] < arch:
        raise MeasureError(
            f"{path} is for {arch}, this machine has {device['gpu']} ({device['arch']}); build it for "
            "this one."
        )
