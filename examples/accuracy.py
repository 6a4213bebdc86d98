"""Compare the product's accuracy with other quantizers: one table, one JSON file, one picture.

Every method gets the same model, calibration tokens and text. Baselines are scored as dequantized
weights in float32; the product as its compiled artifact. Finished rows are kept in the output folder,
so that an interrupted run goes on. A short run:

    make accuracy ARGS="--methods rtn-g128,gptq-g128 --bits 3 --windows 4 --our-bits none"
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
from demo import MODEL, TEXT, Json, call
from fetch_data import cache_folder

from shiftadd_tvm import calibration_text, evaluation
from shiftadd_tvm.accuracy import method
from shiftadd_tvm.accuracy.harness import Harness
from shiftadd_tvm.accuracy.rows import Row, digest
from shiftadd_tvm.benchmark.tables import table
from shiftadd_tvm.checkpoint import open_checkpoint
from shiftadd_tvm.effort import EFFORTS
from shiftadd_tvm.errors import ShiftAddError, UnsupportedError
from shiftadd_tvm.runtime.text import Tokenizer

CALIBRATION = "text/wikipedia_calibration.txt"
OURS = "shiftadd-tvm"


def make_harness(options: argparse.Namespace) -> Harness:
    """Return the harness of the model on its texts."""
    checkpoint = open_checkpoint(options.model)
    tokenizer = Tokenizer(checkpoint.tokenizer_files().get, options.model)
    ids = np.array(tokenizer.encode(calibration_text.read_text(options.text), bos=False), np.int64)
    windows = evaluation.windows(ids, options.window, tokenizer.bos, options.windows)
    text = calibration_text.read_text(options.calib)
    found = calibration_text.from_text(checkpoint, text, options.calib_tokens, options.seed)
    begin = time.perf_counter()
    report = lambda what: print(
        f"{time.perf_counter() - begin:7.0f} s  {what}", file=sys.stderr, flush=True
    )
    return Harness(checkpoint, options.output, found.windows, windows, report)


def baseline_rows(harness: Harness, options: argparse.Namespace, notes: list[str]) -> list[Row]:
    """Return a row for each method and width; what cannot run here is noted and left out."""
    rows = []
    for one in method.choose(words(options.methods)) if options.methods else method.find().values():
        for bits in one.widths:
            if bits not in options.bits:
                continue
            try:
                rows.append(harness.row(one, bits))
            except UnsupportedError as error:
                notes.append(f"{one.name}: {error}")
                break
    return rows


def our_rows(harness: Harness, options: argparse.Namespace) -> list[Row]:
    """Return a row for each of our packed models and artifacts, made here or given."""
    paths = [build(options, bits) for bits in words(options.our_bits)]
    return [our_row(harness, path, options) for path in [*paths, *options.ours]]


def build(options: argparse.Namespace, bits: str) -> Path:
    """Return the packed model at so many bits, quantized unless the folder is there."""
    name = f"{OURS}-{bits}bit-{options.effort}-{options.calib_tokens}-{options.seed}"
    calibration = ("--calib", str(options.calib), "--calib-tokens", str(options.calib_tokens))
    model = digest(open_checkpoint(options.model).source_hash().encode())
    path: Path = options.output / "ours" / f"{name}-{model}"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_dir():
        settings = ("--bits", bits, "--effort", options.effort, "--seed", str(options.seed))
        report = call("quantize", str(options.model), "-o", str(path), *settings, *calibration)
        made_by(path).write_text(json.dumps({"seconds": report["seconds"]}) + "\n")
    return path


def made_by(packed: Path) -> Path:
    """Return the file beside a packed model that says how long quantizing took."""
    return packed.with_name(f"{packed.name}.json")


def our_row(harness: Harness, path: Path, options: argparse.Namespace) -> Row:
    """Return the row of an artifact, or of a packed model as it is compiled."""
    files = sorted(file for file in path.iterdir() if file.is_file())
    stats = [f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]
    mark = digest("\n".join(stats).encode(), str(path.resolve()).encode())
    return harness.rows.get(f"{OURS}-{mark}", mark, lambda: score_ours(harness, path, options))


def score_ours(harness: Harness, path: Path, options: argparse.Namespace) -> Row:
    """Compile a packed model, score the artifact."""
    artifact = path
    if not (path / "manifest.json").is_file():
        artifact = options.output / "ours" / f"{path.name}-app"
        call("compile", str(path), "-o", str(artifact), "--force")
    limits = ("--window", str(options.window), "--max-windows", str(options.windows))
    scored = call("eval", str(artifact), "--text", str(options.text), *limits)
    perplexity = float(str(scored["perplexity"]))
    manifest = json.loads((artifact / "manifest.json").read_text())
    made = json.loads(made_by(path).read_text()) if made_by(path).is_file() else {}
    return Row(
        method=OURS,
        nominal_bits=float(manifest["quantization"]["bits"]),
        effective_bits=float(str(scored["effective_bits"])),
        perplexity=perplexity,
        gap=harness.gap(perplexity),
        seconds=made.get("seconds"),
        multiplication_free=True,
        remark=f"{path.name}, the compiled artifact",
    )


def lines(rows: list[Row]) -> str:
    """Return the table."""
    head = ["", "bits", "effective", "perplexity", "gap", "seconds", "multiply-free"]
    cells = [
        [
            row.method,
            f"{row.nominal_bits:g}",
            f"{row.effective_bits:.3f}",
            f"{row.perplexity:.2f}",
            f"{row.gap:.3f}",
            "" if row.seconds is None else f"{row.seconds:.0f}",
            "yes" if row.multiplication_free else "no",
        ]
        for row in rows
    ]
    return table([head, *cells])


def words(text: str) -> list[str]:
    """Return the parts of a list such as "2,3,4"; none of "none"."""
    return [word.strip() for word in text.split(",") if word.strip() not in ("", "none")]


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--model", type=Path, help="a checkpoint (default: SmolLM2-135M-Instruct)")
    add("--text", type=Path, help="what is scored (default: the Wikipedia test text)")
    add("--calib", type=Path, help="calibration (default: the Wikipedia calibration text)")
    add("--calib-tokens", type=int, default=EFFORTS["normal"].tokens)
    add("--methods", default="", help=f"some of {', '.join(method.find())} (all); or none")
    add("--bits", type=lambda text: [int(w) for w in words(text)], default=[2, 3, 4], help="2,3,4")
    add("--our-bits", default="2,2.2,2.5,3,4", help="of ours, to be made (2,2.2,2.5,3,4); or none")
    add("--effort", default="normal", help="of ours (normal)")
    add("--ours", type=Path, action="append", default=[], help="a packed model or artifact as well")
    add("--window", type=int, default=512, help="tokens of a window (512)")
    add("--windows", type=int, default=40, help="how many are scored (40)")
    add("--seed", type=int, default=0)
    add("--output", type=Path, default=Path("build/accuracy"))
    return parser.parse_args()


def save(options: argparse.Namespace, rows: list[Row], notes: list[str]) -> None:
    """Write JSON and, where matplotlib is, the picture."""
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    settings["ours"] = [str(path) for path in options.ours]
    results: Json = {"settings": settings, "rows": [row.to_dict() for row in rows], "notes": notes}
    (options.output / "accuracy.json").write_text(json.dumps(results, indent=2) + "\n")
    print(f"numbers: {options.output / 'accuracy.json'}")
    try:
        from accuracy_picture import draw
    except ModuleNotFoundError as error:
        print(f"no picture: {error.name} is not installed (pip install matplotlib)")
    else:
        draw(rows, options.output / "accuracy.png")
        print(f"picture: {options.output / 'accuracy.png'}")


def main() -> None:
    """Measure what is not measured yet; print the table last."""
    options = parse()
    options.model = options.model or cache_folder() / MODEL
    options.text = options.text or cache_folder() / TEXT
    options.calib = options.calib or cache_folder() / CALIBRATION
    notes: list[str] = []
    try:
        harness = make_harness(options)
        rows = [harness.reference(), *baseline_rows(harness, options, notes)]
        rows += our_rows(harness, options)
    except ShiftAddError as error:
        sys.exit(f"error: {error}")
    rows.sort(key=lambda row: (-row.nominal_bits, row.gap))
    print(f"\ngap: ln(perplexity / reference), {options.windows} windows of {options.window}\n")
    print(lines(rows))
    remarks = {f"{row.method}: {row.remark}": None for row in rows}
    print("\n" + "\n".join([*remarks, *notes]))
    save(options, rows, notes)


if __name__ == "__main__":
    main()
