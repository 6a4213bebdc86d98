"""What an archive gives a function, on the GPU: weights in several copies, and room for the result.

Part of the programs that run where the GPU is (`gpu.py`).
"""

from __future__ import annotations

import ctypes
import zipfile

from shiftadd_tvm.cuda.contents import content
from shiftadd_tvm.cuda.gpu import Fields, Gpu, Program

LAUNCHES = 24  # of a graph at least


class Uploaded:
    """The arguments of one function, and what it must give."""

    def __init__(self, gpu: Gpu, archive: zipfile.ZipFile, fields: Fields, cold: int) -> None:
        """Upload everything: weights of `cold` bytes together, at least."""
        self._gpu, self.expected = gpu, archive.read(fields["expected"])
        place = fields["weights"]
        known = [gpu.upload(content(archive, argument)) for argument in fields["arguments"]]
        size = fields["arguments"][place]["bytes"]
        copies = [known[place]]
        copies += [gpu.copy(known[place], size) for _ in range(1, max(1, -(-cold // size)))]
        self._output = gpu.memory(len(self.expected))
        self._sets = [[*known[:place], copy, *known[place + 1 :], self._output] for copy in copies]
        self.launches = -(-LAUNCHES // len(copies)) * len(copies)

    def result(self, run: Program) -> bytes:
        """Return what the first copy of the weights gives; garbage was there before."""
        size = len(self.expected)
        self._gpu("cuMemsetD8_v2", self._output, ctypes.c_ubyte(0xFF), ctypes.c_size_t(size))
        run(self._sets[0])
        return self._gpu.download(self._output, size)

    def graph(self, run: Program) -> ctypes.c_void_p:
        """Return a graph of `launches` calls, which go through the copies in turn."""
        return self._gpu.captured(lambda: self._all(run))

    def _all(self, run: Program) -> None:
        for index in range(self.launches):
            run(self._sets[index % len(self._sets)])
