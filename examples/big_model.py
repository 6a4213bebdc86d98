"""Take a checkpoint of a published shape, made of random weights, through quantize and compile.

    python examples/big_model.py --shape llama-2-7b --layers 2 -o /somewhere/big

The weights are written as bfloat16 in shards of at most 2 GB, as Hugging Face writes them; only their
sizes matter here. Each verb then runs in a process of its own. Its memory is that of this process and
of all that it starts, summed up while they run: what is resident, of which the anonymous part cannot be
given back, and the rest are pages of files that the kernel may drop. The script fails where a verb's
resident memory exceeds `--limit` GB. `--method shiftadd` is the calibrated quantizer.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil

from shiftadd_tvm import families, shapes
from shiftadd_tvm.families import Config
from shiftadd_tvm.tensorfile import Source, from_float32, stream_tensors

SAMPLE_SECONDS = 0.1
SHARD_BYTES = 2_000_000_000
SIGN_AND_MANTISSA, EXPONENT = np.uint16(0x807F), np.uint16(121 << 7)  # 2^-6 to 2^-5

Shapes = dict[str, tuple[int, ...]]


def main() -> int:
    """Write the checkpoint, run both verbs and print a line for each."""
    asked = parse()
    source = asked.output / "checkpoint"
    if not (source / "config.json").is_file():
        begin = time.perf_counter()
        write_checkpoint(source, shape_config(asked.shape, asked.layers), asked.shard_bytes)
        size = sum(path.stat().st_size for path in source.iterdir())
        print(f"checkpoint: {size / 1e9:.2f} GB, {time.perf_counter() - begin:.0f} s", flush=True)
    packed, artifact = asked.output / "packed", asked.output / "artifact"
    quantize = ["quantize", source, "-o", packed, "--bits", asked.bits, "--method", asked.method]
    peaks = [run([*map(str, quantize), *asked.options])]
    if asked.compile:
        peaks.append(run(["compile", str(packed), "-o", str(artifact), "--context", "512"]))
    if max(peaks) > asked.limit * 1e9:
        print(f"more than {asked.limit:g} GB were needed")
        return 5
    return 0


def parse() -> argparse.Namespace:
    """Return the command line's values."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--shape", default="llama-2-7b", help="a published name, as of bench")
    parser.add_argument("--layers", type=int, help="blocks; default: all of the shape")
    parser.add_argument("--bits", default="4")
    parser.add_argument("--method", default="alternating")
    parser.add_argument("--limit", type=float, default=6.0, metavar="GB")
    parser.add_argument("--shard-bytes", type=int, default=SHARD_BYTES)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("options", nargs="*", help="more for quantize, after --")
    return parser.parse_args()


def shape_config(name: str, layers: int | None) -> Config:
    """Return the config of a published shape, with fewer blocks where asked."""
    config = {**shapes.config(name), "dtype": "bfloat16"}
    return config if layers is None else {**config, "num_hidden_layers": layers}


def write_checkpoint(folder: Path, config: Config, shard_bytes: int = SHARD_BYTES) -> None:
    """Write a sharded bfloat16 checkpoint of random weights, one tensor in memory at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    expected = families.read_config(config).tensor_shapes()
    shards = list(cut(expected, shard_bytes))
    weight_map = {}
    for index, shard in enumerate(shards, 1):
        name = f"model-{index:05d}-of-{len(shards):05d}.safetensors"
        sources = [
            Source(tensor, "BF16", shape, lambda t=tensor, s=shape: random_weights(t, s))  # type: ignore[misc]
            for tensor, shape in shard.items()
        ]
        stream_tensors(folder / name, sources, {"format": "pt"})
        weight_map |= dict.fromkeys(shard, name)
    index_file = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index_file, indent=2))
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def cut(expected: Shapes, shard_bytes: int) -> Iterator[Shapes]:
    """Yield runs of tensors of at most `shard_bytes`, or of one tensor."""
    shard: Shapes = {}
    for name, shape in expected.items():
        if shard and 2 * sum(map(math.prod, [*shard.values(), shape])) > shard_bytes:
            yield shard
            shard = {}
        shard[name] = shape
    yield shard


def random_weights(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the bits of bfloat16 weights, the same each time: norms of one, else random mantissas
    and signs around a magnitude that keeps activations finite."""
    if len(shape) == 1:
        return from_float32(np.ones(shape, np.float32), "BF16")
    rng = np.random.Generator(np.random.SFC64(list(name.encode())))
    raw = np.frombuffer(rng.bytes(2 * math.prod(shape)), np.uint16) & SIGN_AND_MANTISSA
    return (raw | EXPONENT).reshape(shape)


def run(arguments: list[str]) -> int:
    """Run a verb in a process of its own; return the most memory of it and its children, in bytes."""
    begin = time.perf_counter()
    command = [sys.executable, "-m", "shiftadd_tvm", *arguments, "--json"]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    memory = Memory(child.pid)
    _, status, usage = os.wait4(child.pid, 0)
    memory.stop()
    if os.waitstatus_to_exitcode(status):
        sys.exit(os.waitstatus_to_exitcode(status))
    # the kernel's own mark of the largest single process misses no peak between two samples
    peak = max(memory.resident, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))
    seconds, cpu = time.perf_counter() - begin, usage.ru_utime + usage.ru_stime
    print(
        f"{arguments[0]}: peak memory {peak / 1e9:.2f} GB, of it anonymous "
        f"{memory.anonymous / 1e9:.2f} GB; {seconds:.0f} s, {cpu:.0f} s of CPU",
        flush=True,
    )
    return peak


class Memory:
    """The most memory of a process and all its children, sampled by a thread until `stop`.

    `resident` and `anonymous` are bytes, each the largest sum of one sample. What processes share is
    counted once for each, so that sums are never too small."""

    def __init__(self, pid: int) -> None:
        self.resident = self.anonymous = 0
        self._process = psutil.Process(pid)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take no more samples."""
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(SAMPLE_SECONDS):
            resident = anonymous = 0
            for process in self._tree():
                try:
                    info = process.memory_info()
                except psutil.NoSuchProcess:  # it has ended since it was listed
                    continue
                resident += info.rss
                anonymous += info.rss - getattr(info, "shared", 0)  # Linux: pages of files
            self.resident = max(self.resident, resident)
            self.anonymous = max(self.anonymous, anonymous)

    def _tree(self) -> list[psutil.Process]:
        try:
            return [self._process, *self._process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


if __name__ == "__main__":
    sys.exit(main())
