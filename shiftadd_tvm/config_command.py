"""The verb `config`: where programs in C and C++ find libshiftadd, as build tools ask for it."""

import importlib
import shlex
from pathlib import Path
from typing import Annotated

import typer

from shiftadd_tvm.errors import UsageError
from shiftadd_tvm.interruption import leaving


def config(
    cmakedir: Annotated[
        bool, typer.Option("--cmakedir", help="The folder of shiftaddConfig.cmake (shiftadd_DIR).")
    ] = False,
    cflags: Annotated[bool, typer.Option("--cflags", help="What compiles.")] = False,
    libs: Annotated[bool, typer.Option("--libs", help="What links.")] = False,
    prefix: Annotated[
        bool, typer.Option("--prefix", help="The folder that holds all of it.")
    ] = False,
) -> None:
    """Tell build tools where libshiftadd is.

    Of this installation; a bundle needs no Python to be found. The libraries are put together in the
    user's cache the first time.
    """
    chosen = {"cmakedir": cmakedir, "prefix": prefix, "cflags": cflags, "libs": libs}
    if not any(chosen.values()):
        raise UsageError(
            "Nothing was asked for; expected --cmakedir, --cflags, --libs or --prefix."
        )
    with leaving("nothing was written"):
        cpu = importlib.import_module("shiftadd_tvm.cpu")
        folder = importlib.import_module("shiftadd_tvm.sdk").prefix(cpu.machine())
    texts = answers(folder)
    print(" ".join(texts[name] for name, wanted in chosen.items() if wanted))


def answers(folder: Path) -> dict[str, str]:
    """Return what each option prints for the prefix `folder`."""
    soname = importlib.import_module("shiftadd_tvm.runtime.native_build").SONAME
    place = lambda name: shlex.quote(str(folder / name))
    return {
        "cmakedir": str(folder / "lib" / "cmake" / "shiftadd"),
        "prefix": str(folder),
        "cflags": f"-I{place('include')}",
        "libs": f"-L{place('lib')} -l:{soname} -Wl,-rpath,{place('lib')}",
    }
