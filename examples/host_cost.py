"""Measure what a host costs: the time from main to the first prefill, and resident memory.

    python examples/host_cost.py ARTIFACT [--threads N] [--turns N]

Builds a C++ program (examples/cpp/host_cost.cpp) that loads the artifact, prefills a prompt and decodes
64 tokens, and reads what Linux says of its memory. It is run several times, since the first run fills
the page cache; the best time counts. `overhead_mb` is resident memory without the pages of the
parameters that were touched. The decode step is compared with the kernels' own time: the compiled
function called by its name, with nothing of a session around it.
"""

import argparse
import importlib.util
import json
import subprocess
import tempfile
from pathlib import Path

from shiftadd_tvm.runtime import library, native, native_build

SOURCE = Path(__file__).parent / "cpp" / "host_cost.cpp"


def build(folder: Path) -> Path:
    """Return the program, linked with the package's own library."""
    program, here = folder / "host_cost", native.LIBRARY.parent
    (folder / native_build.SONAME).symlink_to(native.LIBRARY)
    command = [*native_build.compiler(), "-std=c++17", "-O2", str(SOURCE), "-o", str(program)]
    command += [f"-I{native_build.SOURCES / 'include'}", f"-L{here}", "-lshiftadd", "-lpthread"]
    subprocess.run([*command, f"-Wl,-rpath,{folder}"], check=True)
    return program


def main() -> None:
    """Print the measurements as one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=5)
    chosen = parser.parse_args()
    spec = importlib.util.find_spec("tvm_ffi")
    assert spec is not None and spec.submodule_search_locations
    ffi = Path(spec.submodule_search_locations[0]) / "lib" / "libtvm_ffi.so"
    runs = []
    with tempfile.TemporaryDirectory(prefix="shiftadd-host-") as folder:
        command = [
            build(Path(folder)),
            chosen.artifact,
            library.find_runtime(),
            ffi,
            chosen.threads,
        ]
        for _ in range(chosen.turns):
            child = subprocess.run(
                [str(part) for part in command], check=True, capture_output=True, text=True
            )
            runs.append(json.loads(child.stdout))
    best = {name: min(run[name] for run in runs) for name in runs[0]}
    best["decode_over_kernels"] = best["decode_ms"] / best["kernels_ms"]
    print(json.dumps(best, indent=2))


if __name__ == "__main__":
    main()
