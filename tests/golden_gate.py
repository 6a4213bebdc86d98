"""The golden gate: artifacts of one packed model, run by Python and by bundles' hosts on two machines.

All are held to the packed model's golden logits by the margin rule of the compile gate, and to one
another: where the reference's choice is decided, all of them make it. A host is a program of C or C++
that finds nothing but its bundle: headers, libshiftadd, TVM's runtime.
"""

import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from emulation import emulator

from shiftadd_tvm import toolchain
from shiftadd_tvm.runtime.engine import Engine, Sampling

HERE = Path(__file__).parent
SYSTEM = Path("/usr/aarch64-linux-gnu")  # where Debian keeps the C and C++ libraries of ARM

Array = np.ndarray


def build_host(source: str, bundle: Path, machine: str, folder: Path) -> Path:
    """Build a host of this folder against a bundle for `machine`; zig compiles for another one."""
    here = machine == platform.machine()
    host = folder / f"{Path(source).stem}-{machine}"
    language = ("c", "-std=c11") if source.endswith(".c") else ("c++", "-std=c++17")
    library = bundle / "lib"
    command = ["c++"] if here else list(toolchain.zig(machine, "c++"))
    command += ["-x", *language, str(HERE / source), "-x", "none", f"-I{bundle / 'include'}"]
    command += [f"-L{library}", "-l:libshiftadd.so.0", f"-Wl,-rpath,{library}", "-o", str(host)]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    return host


def _run(host: Path, bundle: Path, machine: str, *words: object, given: str = "") -> str:
    command = [str(host), str(bundle), *map(str, words)]
    if machine != platform.machine():
        paths = f"LD_LIBRARY_PATH={bundle / 'lib'}:{SYSTEM / 'lib'}"
        command = [emulator(machine), "-L", str(SYSTEM), "-E", paths, *command]
    child = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    return child.stdout


def run_host(host: Path, bundle: Path, machine: str, ids: Array) -> tuple[Array, Array]:
    """Return the logits (T, V) of ids (T,) by prefill and token by token, run on `machine`."""
    given, found = host.with_suffix(".ids"), host.with_suffix(".logits")
    given.write_bytes(ids.astype("<i4").tobytes())
    _run(host, bundle, machine, given, found)
    logits = np.fromfile(found, "<f4").reshape(2, len(ids), -1)
    return logits[0], logits[1]


def host_tokens(
    host: Path, bundle: Path, prompts: Sequence[str], count: int, sampling: Sampling
) -> list[list[int]]:
    """Return each prompt's ids and `count` new tokens, tokenized and drawn by a host on this machine."""
    chosen = (sampling.temperature, sampling.top_k, sampling.top_p)
    words = (count, *chosen, sampling.repetition_penalty, sampling.seed)
    lines = "".join(f"{prompt}\n" for prompt in prompts)
    said = _run(host, bundle, platform.machine(), *words, given=lines)
    return [[int(word) for word in line.split()] for line in said.splitlines()]


def python_tokens(
    engine: Engine, prompts: Sequence[Sequence[int]], count: int, sampling: Sampling
) -> list[list[int]]:
    """Return each prompt's ids and `count` new tokens, by Python's loop; nothing ends a text early."""
    rows = []
    for ids in prompts:
        session = engine.session()
        session.prefill(ids)
        for step in range(count):
            token = session.sample(sampling, step)
            session.decode(token)
        rows.append(session.tokens)
    return rows
