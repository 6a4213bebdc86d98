"""The golden gate: artifacts of one packed model, run by Python and by a C host on two machines.

All are held to the packed model's golden logits by the margin rule of the compile gate, and to one
another: where the reference's choice is decided, all of them make it.
"""

import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np
from emulation import emulator

from shiftadd_tvm import runtime_libraries
from shiftadd_tvm.artifact import Artifact
from shiftadd_tvm.runtime import native_build
from shiftadd_tvm.verification import RELATIVE, Verification, compare

HOST = Path(__file__).with_name("golden_host.c")
SYSTEM = Path("/usr/aarch64-linux-gnu")  # where Debian keeps the C and C++ libraries of ARM

Array = np.ndarray


def build_host(machine: str, folder: Path) -> Path:
    """Build libshiftadd and the host for a machine into `folder`, beside TVM's runtime libraries."""
    folder.mkdir()
    for name, path in runtime_libraries.find(machine).items():
        (folder / name).symlink_to(path)
    here = machine == platform.machine()
    built = native_build.IN_TREE if here else native_build.build(folder / "built.so", machine)
    for name in (native_build.LIBRARY, native_build.SONAME):
        shutil.copyfile(built, folder / name)
    command = [*native_build.compiler(None if here else machine), "-x", "c", str(HOST), "-x", "none"]
    command += [f"-I{native_build.SOURCES / 'include'}", str(folder / native_build.LIBRARY)]
    host = folder / "golden_host"
    command += ["-Wl,-rpath,$ORIGIN", "-Wl,--allow-shlib-undefined", "-o", str(host)]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    return host


def run_host(host: Path, machine: str, artifact: Path, ids: Array) -> tuple[Array, Array]:
    """Return the logits (T, V) of ids (T,) by prefill and token by token, run on `machine`."""
    given, found = host.with_name("ids"), host.with_name("logits")
    given.write_bytes(ids.astype("<i4").tobytes())
    words = [str(host), str(artifact), str(given), str(found)]
    if machine != platform.machine():
        paths = f"LD_LIBRARY_PATH={host.parent}:{SYSTEM / 'lib'}"
        words = [emulator(machine), "-L", str(SYSTEM), "-E", paths, *words]
    child = subprocess.run(words, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    logits = np.fromfile(found, "<f4").reshape(2, len(ids), -1)
    return logits[0], logits[1]


def held(artifact: Path, tokens: int, found: tuple[Array, Array]) -> list[Verification]:
    """Compare with the golden logits of the first prompt's first tokens."""
    opened = Artifact(artifact)
    _, golden = opened.golden()
    return [compare(golden[0, :tokens], f, RELATIVE[opened.activations()]) for f in found]
