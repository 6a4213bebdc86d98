"""The roof of a GPU's memory: bytes that a kernel reads a second, of a buffer that no cache keeps.

Part of the programs that run where the GPU is (`gpu.py`); the kernel comes with them as machine code,
or is compiled on the spot (`roof.py`).
"""

from __future__ import annotations

import array
import ctypes
from collections.abc import Callable

from shiftadd_tvm.cuda.gpu import PROCESSORS, Gpu, MeasureError

NBYTES = 1 << 30  # of the buffer: many times the second cache of any GPU
ONES = 0x01010101
KERNEL, THREADS, AHEAD, WORD = "read_memory", 512, 8, 16
FILLS = (1, 2, 4)  # blocks of each multiprocessor: which one is the fastest depends on the GPU
REPEATS = 4  # of a launch in a graph

# each thread stores its sum: the reads cannot be left out, and all of them can be checked
SOURCE = f"""extern "C" __global__ void __launch_bounds__({THREADS}) {KERNEL}(
    const uint4* __restrict__ words, unsigned* __restrict__ sums, unsigned long long count) {{
  unsigned long long own = blockIdx.x * {THREADS}ull + threadIdx.x, step = gridDim.x * {THREADS}ull;
  unsigned sum = 0;
  for (unsigned long long at = own; at < count; at += {AHEAD} * step) {{
    uint4 w[{AHEAD}];
#pragma unroll
    for (int i = 0; i < {AHEAD}; i++) w[i] = words[at + i * step < count ? at + i * step : at];
#pragma unroll
    for (int i = 0; i < {AHEAD}; i++)
      if (at + i * step < count) sum += w[i].x + w[i].y + w[i].z + w[i].w;
  }}
  sums[own] = sum;
}}
"""


class Reading:
    """A buffer on a GPU, and graphs that read it."""

    def __init__(self, gpu: Gpu, image: bytes, nbytes: int = NBYTES) -> None:
        """Fill `nbytes`, a multiple of 16, with ones; raises `MeasureError` where a sum is wrong."""
        self._gpu, self._nbytes = gpu, nbytes
        self._kernel, words = gpu.kernel(image, KERNEL), gpu.memory(nbytes)
        gpu("cuMemsetD8_v2", words, ctypes.c_ubyte(1), ctypes.c_size_t(nbytes))
        most = max(FILLS) * gpu.attribute(PROCESSORS) * THREADS
        self._given = [words, gpu.upload(bytes(4 * most)), ctypes.c_uint64(nbytes // WORD)]
        self._check(max(FILLS), most)
        self._graphs = [gpu.captured(self._work(fill, REPEATS)) for fill in FILLS]
        self._events = gpu.event(), gpu.event()

    def _check(self, fill: int, threads: int) -> None:
        self._work(fill, 1)()
        sums = array.array("I", self._gpu.download(self._given[1], 4 * threads))
        if sum(sums) % (1 << 32) != self._nbytes // 4 * ONES % (1 << 32):
            raise MeasureError("reading the GPU's memory gave another sum than what was written")

    def _work(self, fill: int, repeats: int) -> Callable[[], None]:
        grid = [fill * self._gpu.attribute(PROCESSORS), 1, 1]

        def work() -> None:
            for _ in range(repeats):
                self._gpu.launch(self._kernel, grid, [THREADS, 1, 1], self._given)

        return work

    def rates(self) -> dict[str, float]:
        """Return the bytes a second of each way to read, by name."""
        seconds = [self._gpu.seconds(graph, *self._events) for graph in self._graphs]
        names = [f"{fill} blocks" for fill in FILLS]
        return {n: REPEATS * self._nbytes / s for n, s in zip(names, seconds, strict=True)}
