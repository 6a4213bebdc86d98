"""The whole way on a real model: quantize, compile, generate, and what it costs, in one table.

Each step is a command that can be typed by hand; it is printed before it runs. The bits are the
fewest at which the artifact's perplexity stays within `LIMIT` times the reference's: they are tried
downwards on a few windows, until one is beyond (fewer bits are never better).
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
LIMIT = 2.0
BITS = (4, 3, 2, 1)
SCREEN, WINDOWS = 3, 20  # windows of 512 tokens: to rule a count of bits out, and to report

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


def build(source: Path, folder: Path, bits: int) -> tuple[Path, Path, Json]:
    """Quantize and compile `source`; return packed model, artifact and what quantize reported."""
    packed, artifact = folder / f"packed-{bits}bit", folder / f"artifact-{bits}bit"
    settings = ("--bits", str(bits), "--embedding-bits", "8", "--force")
    report = call("quantize", str(source), "-o", str(packed), *settings)
    call("compile", str(packed), "-o", str(artifact), "--force")
    return packed, artifact, report


def fewest_bits(source: Path, folder: Path, text: Path) -> tuple[int, Path, Path, Json]:
    """Return the fewest bits within the limit on the screening windows, and what they gave."""
    limit = LIMIT * perplexity(source, text, SCREEN)
    best: tuple[int, Path, Path, Json] | None = None
    for bits in BITS:
        packed, artifact, report = build(source, folder, bits)
        found = perplexity(artifact, text, SCREEN)
        verdict = "within" if found <= limit else "beyond"
        print(f"\n{bits} bits: perplexity {found:.1f}, {verdict} the limit of {limit:.1f}")
        if best is None or found <= limit:
            best = bits, packed, artifact, report
        if found > limit:
            break
    assert best is not None
    return best


def size(path: Path) -> int:
    """Return the bytes of a file or of the files in a folder."""
    return sum(p.stat().st_size for p in ([path] if path.is_file() else path.iterdir()))


def main() -> None:
    """Run the demo; prints the table last."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a checkpoint (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--output", type=Path, default=Path("build/demo"))
    options = parser.parse_args()
    started = time.perf_counter()
    source = Path(options.model) if options.model else cache_folder() / MODEL
    text = cache_folder() / TEXT
    options.output.mkdir(parents=True, exist_ok=True)

    bits, packed, artifact, report = fewest_bits(source, options.output, text)
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
        f"\n{bits} bits; decode {decode:.0f} tokens/s, prefill {prefill:.0f} tokens/s; the demo took "
        f"{time.perf_counter() - started:.0f} s"
    )
    print(f"go on with: .venv/bin/shiftadd-tvm chat {artifact}")


if __name__ == "__main__":
    main()
