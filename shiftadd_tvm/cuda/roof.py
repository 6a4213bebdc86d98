"""The roof of this machine's GPU: its memory's bandwidth, by a kernel that is compiled on the spot."""

from shiftadd_tvm.cuda import nvrtc, toolkit
from shiftadd_tvm.cuda.gpu import Gpu, MeasureError
from shiftadd_tvm.cuda.reading import NBYTES, SOURCE, Reading
from shiftadd_tvm.errors import UnsupportedError


def image(arch: str) -> bytes:
    """Return the machine code of the kernel that reads; raises `OutputError`, or `UnsupportedError` where
    no compiler is."""
    return nvrtc.Nvrtc(toolkit.find()).compile(SOURCE, arch).cubin


class Roof:
    """What the memory of the first GPU gives."""

    def __init__(self, arch: str, nbytes: int = NBYTES) -> None:
        """Prepare to read `nbytes`; raises `UnsupportedError` without a GPU or a compiler for `arch`."""
        try:
            kernel = image(arch)
            self._reading = Reading(Gpu(), kernel, nbytes)
        except MeasureError as error:
            raise UnsupportedError(f"The GPU's memory cannot be measured: {error}.") from None

    def rates(self) -> dict[str, float]:
        """Return the bytes a second of each way to read, by name."""
        return self._reading.rates()
