"""Measure single operators and a whole model against their peers: one table, one JSON file, one picture.

Each step is a command that can be typed by hand; it is printed before it runs. Peers that are not
installed are named with their remedy, and the rest runs.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from demo import call

from shiftadd_tvm.benchmark.tables import table

SHAPES = "4096x4096,11008x4096,4096x11008"
MODEL = "smollm2-135m"

Fields = dict[str, Any]


def measure_kernels(bits: int, options: argparse.Namespace) -> Fields:
    """Return what `bench --kernel` finds for all shapes at so many bits."""
    flags = ["--kernel", "--shape", options.shapes, "--bits", str(bits)]
    return call("bench", *flags, "--threads", str(options.kernel_threads), *peers(options))


def measure_model(bits: int, options: argparse.Namespace) -> Fields:
    """Return what `bench` finds for an artifact, or for a published shape with made-up weights."""
    artifact = Path(options.model).is_dir()
    what = [options.model] if artifact else ["--synthetic", options.model, "--bits", str(bits)]
    tokens = [
        "--prompt-tokens",
        str(options.prompt_tokens),
        "--new-tokens",
        str(options.new_tokens),
    ]
    threads = ["--threads", str(options.threads)] if options.threads else []
    return call("bench", *what, *tokens, *threads, *peers(options))


def peers(options: argparse.Namespace) -> list[str]:
    """Return the flag that has peers measured."""
    return [] if options.alone else ["--baselines"]


def kernel_rows(found: list[Fields]) -> list[list[str]]:
    """Return a row for each operator: its time, its share of the roof, and how many times faster it is
    than each peer (of llama.cpp's forms, than the fastest)."""
    rows = []
    for fields in found:
        for kernel in fields["kernels"]:
            outputs, inputs = kernel["shape"]
            rows.append(
                [
                    f"{outputs} x {inputs}, {fields['bits']} bits",
                    f"{kernel['microseconds']:.0f} us",
                    f"{kernel['bytes_per_second'] / 1e9:.1f}",
                    f"{kernel['bandwidth_fraction']:.0%}",
                    *ratio_cells(kernel["baselines"]),
                ]
            )
    return rows


def model_rows(found: list[Fields]) -> list[list[str]]:
    """Return two rows for each model: decode and prefill."""
    rows = []
    for fields in found:
        decode = fields["decode_tokens_per_second"]
        name = f"{Path(fields['model']).name}, {fields['bits']:g} bits"
        rows.append(
            [
                f"{name}, decode",
                f"{decode:.1f} tok/s",
                f"{fields['bytes_per_token'] * decode / 1e9:.1f}",
                f"{fields['bandwidth_fraction']:.0%}",
                *ratio_cells(fields["baselines"]),
            ]
        )
        prefill = f"{fields['prefill_tokens_per_second']:.1f} tok/s"
        ratios = ratio_cells(fields["baselines"], "prefill_ratio")
        rows.append([f"{name}, prefill {fields['prompt_tokens']}", prefill, "", "", *ratios])
    return rows


def ratio_cells(baselines: Fields, key: str = "ratio") -> list[str]:
    """Return how many times faster we are than torch, ONNX Runtime and llama.cpp's fastest form."""
    cells = []
    for prefix in ("torch", "onnxruntime", "llama.cpp-"):
        found = {n: p[key] for n, p in baselines.items() if n.startswith(prefix) and p.get(key)}
        name = min(found, key=lambda peer: found[peer]) if found else ""
        kind = name.removeprefix(prefix) if prefix == "llama.cpp-" else ""
        cells.append(f"{found[name]:.2f} {kind}".strip() if found else "-")
    return cells


def remarks(found: list[Fields]) -> list[str]:
    """Return what was noted and what is missing, each once."""
    lines: dict[str, None] = {}
    for fields in found:
        for entry in fields.get("kernels", [fields]):
            absent = {n: p for n, p in entry["baselines"].items() if "error" in p}
            lines |= dict.fromkeys(f"{name}: {peer['error']}" for name, peer in absent.items())
        lines |= dict.fromkeys(f"note: {note}" for note in fields["notes"])
    return list(lines)


def numbers(text: str) -> list[int]:
    """Return the numbers of a list such as "2,3,4"."""
    return [int(word) for word in text.split(",")]


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=MODEL, help=f"artifact or published shape ({MODEL})")
    parser.add_argument("--bits", default="2,3,4", help="bits of the operators (2,3,4)")
    parser.add_argument("--model-bits", default="4", help="bits of the model, such as 2,3,4 (4)")
    parser.add_argument("--shapes", default=SHAPES, help=f"operators, or none ({SHAPES})")
    parser.add_argument("--threads", type=int, help="of the model (all processors)")
    parser.add_argument("--kernel-threads", type=int, default=1, help="of the operators (1)")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--alone", action="store_true", help="without peers")
    parser.add_argument("--output", type=Path, default=Path("build/bench"))
    return parser.parse_args()


def main() -> None:
    """Run the bench; prints the table last."""
    options = parse()
    options.output.mkdir(parents=True, exist_ok=True)
    shapes = options.shapes not in ("", "none")
    kernels = [measure_kernels(bits, options) for bits in numbers(options.bits) if shapes]
    artifact = Path(options.model).is_dir()  # which has its own bits
    models = [
        measure_model(b, options) for b in numbers(options.model_bits)[: 1 if artifact else None]
    ]
    results = {"kernels": kernels, "models": models}
    (options.output / "bench.json").write_text(json.dumps(results, indent=2) + "\n")

    head = ["", "time or speed", "GB/s", "of the roof", "torch bf16", "ONNX RT 4-bit", "llama.cpp"]
    print("\nratios: how many times faster than the peer; of llama.cpp's forms, than the fastest\n")
    print(table([head, *kernel_rows(kernels), *model_rows(models)]))
    rates = [f["dram_bandwidth_bytes_per_second"] / 1e9 for f in [*kernels, *models]]
    print(f"\nroof: {min(rates):.1f} to {max(rates):.1f} GB/s, measured beside each")
    print("\n".join(remarks([*kernels, *models])))
    try:
        from bench_picture import draw
    except ModuleNotFoundError as error:
        print(f"no picture: {error.name} is not installed (pip install matplotlib)")
    else:
        draw(results, options.output / "bench.png")
        print(f"picture: {options.output / 'bench.png'}")
    print(f"numbers: {options.output / 'bench.json'}")


if __name__ == "__main__":
    main()
