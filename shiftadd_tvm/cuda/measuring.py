"""Measure the candidates of an archive on the GPU of this machine: `python3 candidates.pyz`.

This file is the archive's program. It needs a driver and Python 3.10 or newer, and nothing else: no
package, no compiler, no other part of CUDA. Every candidate's output is compared, bit by bit, with the
numbers of the NumPy reference, which the archive holds; those that are right are timed in turns. A task
runs in a process of its own: a candidate that crashes or hangs is left out, and the task begins again.
After each task `times.json` is written anew, and the same command goes on after the last one.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from typing import Any

TASKS, TIMES, SCHEMA = "candidates.json", "times.json", 1
LAUNCHES, ROUNDS, PERCENTILE = 24, 40, 25
TIMEOUT = 300  # seconds, of a task
RELAXED = 2  # the mode of capturing
BLOCKING = 0
MAJOR, MINOR = 75, 76  # attributes of a device

Fields = dict[str, Any]
Kernels = list[tuple[Fields, Any]]  # candidates, and their functions of the driver


class MeasureError(Exception):
    """What stops the program, in one sentence."""


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
        name, numbers = ctypes.create_string_buffer(256), []
        self("cuDeviceGetName", name, len(name), self._device)
        for which in (MAJOR, MINOR):
            number = ctypes.c_int()
            self("cuDeviceGetAttribute", ctypes.byref(number), which, self._device)
            numbers.append(number.value)
        version = ctypes.c_int()
        self("cuDriverGetVersion", ctypes.byref(version))
        return {
            "gpu": name.value.decode(),
            "arch": f"sm_{numbers[0]}{numbers[1]}",
            "driver": f"{version.value // 1000}.{version.value % 1000 // 10}",
        }

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
        self, kernel: Any, grid: list[int], block: list[int], addresses: list[ctypes.c_uint64]
    ) -> None:
        """Run a kernel with these arguments."""
        given = (ctypes.c_void_p * len(addresses))(*(ctypes.addressof(a) for a in addresses))
        sizes = (ctypes.c_uint(size) for size in (*grid, *block, 0))
        self("cuLaunchKernel", kernel, *sizes, self.stream, given, None)

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


class Task:
    """One task on the GPU: its arguments, its weights in as many copies as they need."""

    def __init__(self, gpu: Gpu, archive: zipfile.ZipFile, fields: Fields) -> None:
        """Upload everything."""
        self._gpu, self._archive, self._fields = gpu, archive, fields
        self._expected = archive.read(fields["expected"])
        self._output = gpu.memory(len(self._expected))
        arguments = [gpu.upload(content(archive, a)) for a in fields["arguments"]]
        place, size = fields["planes"], fields["arguments"][fields["planes"]]["bytes"]
        self._sets = []
        for index in range(max(1, -(-fields["cold"] // size))):
            own = list(arguments)
            if index:
                own[place] = gpu.copy(arguments[place], size)
            self._sets.append([*own, self._output])

    def launch(self, candidate: Fields, kernel: Any, index: int) -> None:
        """Run a candidate with one set of weights."""
        given = [self._sets[index][at] for at in candidate["order"]]
        self._gpu.launch(kernel, candidate["grid"], candidate["block"], given)

    def check(self, candidate: Fields, kernel: Any) -> bool:
        """Tell whether a candidate gives the reference's numbers, bit by bit."""
        size = len(self._expected)
        self._gpu("cuMemsetD8_v2", self._output, ctypes.c_ubyte(0xFF), ctypes.c_size_t(size))
        self.launch(candidate, kernel, 0)
        return self._gpu.download(self._output, size) == self._expected

    def times(self, kernels: Kernels) -> list[float]:
        """Return the seconds of a call of each (candidate, kernel), measured in turns."""
        launches = -(-LAUNCHES // len(self._sets)) * len(self._sets)
        graphs = [self._graph(candidate, kernel, launches) for candidate, kernel in kernels]
        start, end = self._gpu.event(), self._gpu.event()
        taken: list[list[float]] = [[] for _ in graphs]
        for _ in range(1 + ROUNDS):
            for times, graph in zip(taken, graphs, strict=True):
                times.append(self._gpu.seconds(graph, start, end) / launches)
        return [sorted(times[1:])[ROUNDS * PERCENTILE // 100] for times in taken]

    def _graph(self, candidate: Fields, kernel: Any, launches: int) -> ctypes.c_void_p:
        def work() -> None:
            for index in range(launches):
                self.launch(candidate, kernel, index % len(self._sets))

        return self._gpu.captured(work)


def content(archive: zipfile.ZipFile, argument: Fields) -> bytes:
    """Return the bytes of an argument: stored, or made up of a seed as the archive's maker did."""
    if "file" in argument:
        return archive.read(argument["file"])
    return hashlib.shake_128(argument["seed"].encode()).digest(argument["bytes"])


def say(**fields: object) -> None:
    """Tell the parent."""
    print(json.dumps(fields), flush=True)


def run_task(path: str, index: int, left_out: list[int]) -> None:
    """Check and time the candidates of one task; the child's work."""
    with zipfile.ZipFile(path) as archive:
        fields = json.loads(archive.read(TASKS))["tasks"][index]
        gpu = Gpu()
        task, right = Task(gpu, archive, fields), list[tuple[int, Fields, Any]]()
        for number, candidate in enumerate(fields["candidates"]):
            if number in left_out:
                continue
            say(begin=number)
            kernel = gpu.kernel(archive.read(candidate["image"]), candidate["kernel"])
            if task.check(candidate, kernel):
                right.append((number, candidate, kernel))
            else:
                say(failed=[number, "computes other numbers than the reference"])
        say(begin=None)
        times = task.times([(candidate, kernel) for _, candidate, kernel in right])
        say(times={number: t for (number, *_), t in zip(right, times, strict=True)})


def measure_task(path: str, index: int, fields: Fields) -> tuple[dict[int, float], dict[int, str]]:
    """Return the seconds or the failure of each candidate of a task, by number."""
    failed: dict[int, str] = {}
    while True:
        command = [sys.executable, path, "--task", str(index), "--leave-out", json.dumps(list(failed))]
        try:
            child = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
            said, status = child.stdout, child.returncode
            lines = child.stderr.strip().splitlines()
            why = lines[-1] if status > 0 and lines else f"crashed (status {status})"
        except subprocess.TimeoutExpired as error:
            said, status = (error.stdout or b"").decode(), -1
            why = f"took more than {TIMEOUT} s"
        messages = [json.loads(line) for line in said.splitlines()]
        failed.update(m["failed"] for m in messages if "failed" in m)
        if status == 0:
            return {int(k): t for k, t in messages[-1]["times"].items()}, failed
        guilty = [m["begin"] for m in messages if "begin" in m]
        if not guilty or guilty[-1] is None:
            raise MeasureError(f"{fields['name']} cannot be measured: {why}")
        failed[guilty[-1]] = why


def report(fields: Fields, times: dict[int, float], failed: dict[int, str]) -> list[Fields]:
    """Return what is said of a task."""
    return [
        {"values": c["values"], "seconds": times.get(n), "failed": failed.get(n)}
        for n, c in enumerate(fields["candidates"])
    ]


def begun(path: str, output: str, device: dict[str, str]) -> Fields:
    """Return what is known already: of an earlier run on the same GPU with the same candidates."""
    with open(path, "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    found: Fields = {"schema": SCHEMA, "candidates": digest, "device": device, "tasks": {}}
    found["date"] = datetime.date.today().isoformat()
    if os.path.exists(output):
        with open(output, encoding="utf-8") as before:
            earlier = json.load(before)
        if all(earlier.get(key) == found[key] for key in ("schema", "candidates", "device")):
            found["tasks"] = earlier["tasks"]
    return found


def measure(path: str, output: str) -> None:
    """Measure every task of the archive at `path` that `output` has no times of; write them there."""
    with zipfile.ZipFile(path) as archive:
        made = json.loads(archive.read(TASKS))
    device = Gpu().describe()
    # of the same major version, and not of an earlier minor one
    if device["arch"][:-1] != made["arch"][:-1] or device["arch"] < made["arch"]:
        raise MeasureError(
            f"{path} is for {made['arch']}, this machine has {device['gpu']} ({device['arch']}); "
            "build candidates for it."
        )
    found = begun(path, output, device)
    for index, fields in enumerate(made["tasks"]):
        if fields["name"] not in found["tasks"]:
            found["tasks"][fields["name"]] = report(fields, *measure_task(path, index, fields))
            with open(output + ".partial", "w", encoding="utf-8") as file:
                json.dump(found, file, indent=1)
            os.replace(output + ".partial", output)
        print(f"{index + 1} of {len(made['tasks'])}: {fields['name']}", file=sys.stderr, flush=True)


def main(arguments: list[str]) -> int:
    """Run the program; the path of the archive is that of the program itself."""
    path = os.path.abspath(sys.argv[0])
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    beside = os.path.join(os.path.dirname(path), TIMES)
    parser.add_argument("-o", "--output", default=beside, help="default: times.json beside it")
    parser.add_argument("--task", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--leave-out", default="[]", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    try:
        if given.task is not None:
            run_task(path, given.task, json.loads(given.leave_out))
        else:
            measure(path, given.output)
    except MeasureError as error:
        print(error, file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
