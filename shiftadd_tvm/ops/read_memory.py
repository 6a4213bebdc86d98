"""read_memory: read a buffer once, for the bandwidth that the machine's memory gives.

    sums[i, s, l] = sum over b of words[i, s, b, l]   modulo 2^32

A bench runs it over a buffer much larger than the last cache, between the steps that it times: what
it reads a second is the roof of whatever streams weights from memory, on the same threads and in the
same minutes. It is an operator like the others, and every artifact carries it (two kilobytes of
code), so that a device needs neither a compiler nor another tool to know its roof. The checksum keeps
a compiler from leaving reads out, and tells that all of the buffer was read.

Which reading is the fastest depends on the processor's own prefetcher, so there are two, and the roof
is the faster of both in the same run:

    read_memory         four runs of a part at once (s), a cache line of each in turn
    read_memory_ahead   one run, prefetched by software where the target has an instruction for it
"""

import numpy as np
from tvm import te

from shiftadd_tvm.ops.shift import Array

# operator -> runs side by side, words of each that are summed side by side
SHAPES = {"read_memory": (4, 16), "read_memory_ahead": (1, 64)}
MOST_PARTS = 1024  # parts that a call may have; parts go to threads, each part to one


def read(words):
    """Return sums (n, runs, columns) uint32 of words (n, runs, blocks, columns) uint32: n parts."""
    parts, runs, blocks, columns = words.shape
    b = te.reduce_axis((0, blocks), "b")
    return te.compute(
        (parts, runs, columns),
        lambda i, s, column: te.sum(words[i, s, b, column], axis=b),
        name="sums",
    )


def reference(words: Array) -> Array:
    """Return sums (n, runs, columns) uint32 of words (n, runs, blocks, columns) uint32."""
    return words.sum(axis=2, dtype=np.uint32)


REFERENCES = dict.fromkeys(SHAPES, reference)
