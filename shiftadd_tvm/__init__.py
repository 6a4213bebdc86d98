"""Turn pretrained LLMs into shifts, look-ups and adds, and compile them with Apache TVM.

import shiftadd_tvm
shiftadd_tvm.quantize("SmolLM2-135M", "packed", bits=4)
shiftadd_tvm.compile("packed", "app")
print("".join(shiftadd_tvm.load("app").generate("The capital of France is")))
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shiftadd_tvm.tune_workflow import tune
    from shiftadd_tvm.workflow import compile, load, quantize

__all__ = ["__version__", "compile", "load", "quantize", "tune"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Import a verb when it is used: the package itself imports nothing."""
    if name in ("compile", "load", "quantize", "tune"):
        import importlib

        home = "tune_workflow" if name == "tune" else "workflow"
        return getattr(importlib.import_module(f"shiftadd_tvm.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
