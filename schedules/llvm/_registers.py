"""What kernels that are written out keep beside their operands."""

from typing import Any

from tvm.tirx.script import builder as T


def small(shape: tuple[int, ...], dtype: str) -> Any:
    """Return a buffer that LLVM keeps in registers: TVM puts small ones of this scope on the stack, and
    asks its runtime for memory for those of scope "local"."""
    return T.alloc_buffer(shape, dtype, scope="global")
