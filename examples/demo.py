"""The whole way on a real model: quantize, compile, generate, and what it costs, in one table.

Each step is a command that can be typed by hand; it is printed before it runs. The model is calibrated
on a text where `--calib` names one (the demo's own model has one), else on what it writes itself.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from fetch_data import cache_folder

MODEL = "smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = "text/wikipedia_test.txt"
PROMPT = "The three most important inventions in the history of science are"
CALIBRATION = "text/wikipedia_calibration.txt"
WINDOWS = 20  # of 512 tokens, by which perplexities are compared

Json = dict[str, object]


def call(verb: str, *arguments: str) -> Json:
    """Run one verb of the installed command, show it, and return its JSON result."""
    command = [str(Path(sys.executable).with_name("shiftadd-tvm")), verb, *arguments]
    print("\n$ shiftadd-tvm " + " ".join(command[1:]), flush=True)
    result = subprocess.run([*command, "--json"], stdout=subprocess.PIPE, text=True, check=False)
    if result.returncode != 0:
        sys.exit(result.returncode)
    parsed: Json = json.loads(result.stdout.splitlines()[-1])
    return parsed


def perplexity(path: Path, text: Path, windows: int) -> float:
    """Return the perplexity of a checkpoint, packed model or artifact on the first windows."""
    found = call("eval", str(path), "--text", str(text), "--max-windows", str(windows))
    return float(str(found["perplexity"]))


def build(source: Path, folder: Path, options: argparse.Namespace) -> tuple[Path, Path, Json]:
    """Quantize and compile `source`; return packed model, artifact and what quantize reported."""
    packed, artifact = folder / f"packed-{options.bits}bit", folder / f"artifact-{options.bits}bit"
    settings = ["--bits", options.bits, "--effort", options.effort, "--embedding-bits", "8"]
    if options.effort == "fast":
        settings.append("--uniform")  # to measure what each linear needs takes minutes
    if options.calib:
        settings += ["--calib", str(options.calib)]
    report = call("quantize", str(source), "-o", str(packed), *settings, "--force")
    call("compile", str(packed), "-o", str(artifact), "--force")
    return packed, artifact, report


def size(path: Path) -> int:
    """Return the bytes of a file or of the files in a folder."""
    return sum(p.stat().st_size for p in ([path] if path.is_file() else path.iterdir()))


def main() -> None:
    """Run the demo; prints the table last."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a checkpoint (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--output", type=Path, default=Path("build/demo"))
    parser.add_argument("--bits", default="3", help="bits a weight, or an average such as 2.5")
    parser.add_argument("--effort", default="fast", help="fast (minutes), normal, best")
    parser.add_argument("--calib", type=Path, help="calibration text")
    options = parser.parse_args()
    started = time.perf_counter()
    source = Path(options.model) if options.model else cache_folder() / MODEL
    if not options.model:
        options.calib = options.calib or cache_folder() / CALIBRATION
    text = cache_folder() / TEXT
    options.output.mkdir(parents=True, exist_ok=True)

    packed, artifact, report = build(source, options.output, options)
    sampling = ("--temperature", "0.7", "--top-p", "0.9", "--repetition-penalty", "1.15")
    written = call("run", str(artifact), "--prompt", PROMPT, "--max-new-tokens", "96", *sampling)
    rows = [
        ("reference (checkpoint)", size(source), None, perplexity(source, text, WINDOWS)),
        ("packed model", size(packed), report["effective_bits"], perplexity(packed, text, WINDOWS)),
        ("artifact", size(artifact), report["effective_bits"], perplexity(artifact, text, WINDOWS)),
    ]
    print(f"\n{PROMPT}{written['text']}\n")
    print(f"{'':24}{'size':>10}{'bits/weight':>13}{'perplexity':>12}")
    for name, bytes_, effective, found in rows:
        bits_shown = "" if effective is None else f"{effective:.3f}"
        print(f"{name:24}{bytes_ / 1e6:>7.1f} MB{bits_shown:>13}{found:>12.2f}")
    decode, prefill = (float(str(written[f"{k}_tokens_per_second"])) for k in ("decode", "prefill"))
    print(
        f"\n{options.bits} bits; decode {decode:.0f} tokens/s, prefill {prefill:.0f} tokens/s; "
        f"the demo took {time.perf_counter() - started:.0f} s"
    )
    print(f"go on with: .venv/bin/shiftadd-tvm chat {artifact}")


if __name__ == "__main__":
    main()
