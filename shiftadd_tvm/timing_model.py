"""How many cycles a loop takes by LLVM's static model of a processor, llvm-mca.

The model knows the processor's units, latencies and issue width. It knows no memory: every load hits the
first cache. So it ranks what compilers decide (unrolling, what is shared in registers), and nothing else.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

from shiftadd_tvm.disassembly import Instruction
from shiftadd_tvm.errors import UnsupportedError

NAME = "llvm-mca"
OLDEST, NEWEST = 17, 40  # before 17 the Neoverse cores are timed as Cortex-A57
TURNS = 100  # of the loop, so that what carries over from one to the next counts


class ModelError(Exception):
    """The model does not know an instruction, or says nothing."""


@dataclass(frozen=True)
class TimingModel:
    """An installed llvm-mca."""

    program: str
    version: str  # LLVM's

    @property
    def name(self) -> str:
        """What a tuning log says of it."""
        return f"{NAME} {self.version}"

    def cycles(self, loop: Iterable[Instruction], processor: str, machine: str) -> float:
        """Return the cycles of one turn of `loop` on `processor`; raises `ModelError`."""
        text = "".join(f"{i.mnemonic} {i.operands}\n" for i in loop)
        command = [self.program, f"-mtriple={machine}-linux-gnu", f"-mcpu={processor}"]
        child = subprocess.run(
            [*command, f"-iterations={TURNS}", "-json"],
            input=text,
            capture_output=True,
            text=True,
            check=False,
        )
        if child.returncode:
            lines = [line for line in child.stderr.splitlines() if "error" in line]
            raise ModelError((lines or [f"exit status {child.returncode}"])[0])
        summary = json.loads(child.stdout)["CodeRegions"][0]["SummaryView"]
        return float(summary["TotalCycles"]) / TURNS


def find() -> TimingModel:
    """Return the newest llvm-mca on the PATH; `UnsupportedError` says how to get one."""
    names = [*(f"{NAME}-{number}" for number in range(NEWEST, OLDEST - 1, -1)), NAME]
    old = []
    for name in names:
        if (program := shutil.which(name)) is None:
            continue
        version = _version(program)
        if version and int(version.partition(".")[0]) >= OLDEST:
            return TimingModel(program, version)
        old.append(f"{program} of LLVM {version or 'unknown'}")
    found = f"found {old[0]}" if old else "found none"
    raise UnsupportedError(
        f"Candidates for another machine are ranked by {NAME} of LLVM {OLDEST} or newer, expected on "
        f"the PATH, {found}; install it (Debian: apt-get install llvm-19), or measure on a board by "
        "--rpc."
    )


def _version(program: str) -> str:
    child = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    match = re.search(r"LLVM version ([\d.]+)", child.stdout)
    return match[1] if match else ""
