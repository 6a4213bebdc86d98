"""Measure what a host costs: the time from main to the first prefill, memory, and a decode step.

    python examples/host_cost.py ARTIFACT [--threads N] [--turns N]
    python examples/host_cost.py --synthetic llama-2-7b --blocks 2

Builds a C++ program (examples/cpp/host_cost.cpp) that loads the artifact and its tokenizer, prefills a
prompt and decodes 64 tokens, and reads what Linux says of its memory. It is run several times, since the
first run fills the page cache; the best time counts. `overhead_mb` is resident memory without the pages
of the parameters that were touched. Decode steps take turns with the compiled function called by its
name, with nothing of a session around it, and with the same call while the runtime reports what each
operator takes, which add up to `operators_ms`: the kernels' own time. `decode_over_function` and
`decode_over_operators` are the medians of the runs' ratios of these medians. A synthetic model
has a published shape, so many of its blocks, and made-up weights.
"""

import argparse
import importlib.util
import json
import statistics
import subprocess
import tempfile
from pathlib import Path

from shiftadd_tvm import __version__, backend, compiler, shapes
from shiftadd_tvm.compile_settings import CompileSettings
from shiftadd_tvm.runtime import library, native, native_build
from shiftadd_tvm.settings import QuantizeSettings
from shiftadd_tvm.synthetic import SyntheticModel

SOURCE = Path(__file__).parent / "cpp" / "host_cost.cpp"


def build(folder: Path) -> Path:
    """Return the program, linked with the package's own library."""
    program, here = folder / "host_cost", native.LIBRARY.parent
    (folder / native_build.SONAME).symlink_to(native.LIBRARY)
    command = [*native_build.compiler(), "-std=c++17", "-O2", str(SOURCE), "-o", str(program)]
    command += [f"-I{native_build.SOURCES / 'include'}", f"-L{here}", "-lshiftadd", "-lpthread"]
    subprocess.run([*command, f"-Wl,-rpath,{folder}"], check=True)
    return program


def synthetic(folder: Path, name: str, blocks: int, bits: float) -> Path:
    """Return an artifact of so many blocks of a published shape, compiled for this machine."""
    config = shapes.config(name) | {"num_hidden_layers": blocks}
    model = SyntheticModel(config, QuantizeSettings(bits=bits, embedding_bits=8))
    settings = CompileSettings(context=512, sequences=1, verify=False)
    compiler.compile_model(model, folder / "app", backend.detect(), settings, version=__version__)
    return folder / "app"


def measure(artifact: Path, folder: Path, threads: int, turns: int) -> dict[str, float]:
    """Return the best of each figure of `turns` runs, and how a step compares with its function."""
    spec = importlib.util.find_spec("tvm_ffi")
    assert spec is not None and spec.submodule_search_locations
    ffi = Path(spec.submodule_search_locations[0]) / "lib" / "libtvm_ffi.so"
    command = [build(folder), artifact, library.find_runtime(), ffi, threads]
    runs = []
    for _ in range(turns):
        words = [str(part) for part in command]
        child = subprocess.run(words, check=True, capture_output=True, text=True)
        runs.append(json.loads(child.stdout))
    best = {name: min(run[name] for run in runs) for name in runs[0]}
    over = lambda name: statistics.median(run["decode_ms"] / run[f"{name}_ms"] for run in runs)
    return best | {f"decode_over_{name}": over(name) for name in ("function", "operators")}


def main() -> None:
    """Print the measurements as one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("artifact", type=Path, nargs="?")
    parser.add_argument("--synthetic", metavar="NAME", help="a published shape, as of bench")
    parser.add_argument("--blocks", type=int, default=2, help="of the synthetic model")
    parser.add_argument("--bits", type=float, default=4, help="of the synthetic model")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=5)
    asked = parser.parse_args()
    if (asked.artifact is None) == (asked.synthetic is None):
        parser.error("give either an artifact or --synthetic")
    with tempfile.TemporaryDirectory(prefix="shiftadd-host-") as folder:
        place = Path(folder)
        artifact = asked.artifact
        if asked.synthetic:
            artifact = synthetic(place, asked.synthetic, asked.blocks, asked.bits)
        found = measure(artifact, place, asked.threads, asked.turns)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
