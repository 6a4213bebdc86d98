"""Check the sensitivities by which bits are chosen: rank correlation with the measured loss.

Every linear alone is coded at each of `--bits`; the divergence of the next token that this brings is
measured on windows of the test text, and compared with the loss that the choice of bits goes by.

    .venv/bin/python examples/sensitivity.py --bits 2,3 --windows 2

`--every 5` takes the linears of every fifth block alone: a fifth of the time.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from demo import MODEL, TEXT
from fetch_data import cache_folder

from shiftadd_tvm import calibration_text, evaluation
from shiftadd_tvm.accuracy import ranking
from shiftadd_tvm.calibrated import Calibrated
from shiftadd_tvm.checkpoint import open_checkpoint
from shiftadd_tvm.checkpoint_base import Checkpoint
from shiftadd_tvm.families import read_config
from shiftadd_tvm.runtime.text import Tokenizer
from shiftadd_tvm.settings import QuantizeSettings
from shiftadd_tvm.statistics_store import StatisticsStore


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--model", type=Path, default=cache_folder() / MODEL)
    add("--text", type=Path, default=cache_folder() / TEXT, help="on which losses are measured")
    add("--calib", type=Path, default=cache_folder() / "text/wikipedia_calibration.txt")
    add("--bits", type=lambda text: [int(word) for word in text.split(",")], default=[2])
    add("--windows", type=int, default=2, help="of 512 tokens, on which losses are measured (2)")
    add("--every", type=int, default=1, help="take the linears of every so many blocks (1)")
    add("--effort", default="normal", help="of the calibration (normal)")
    add("--output", type=Path, default=Path("build/sensitivity"))
    return parser.parse_args()


def windows_of(checkpoint: Checkpoint, text: Path, count: int) -> np.ndarray:
    """Return token ids int64 (count, 512), spread over the text: neighbours are of one article."""
    tokenizer = Tokenizer(checkpoint.tokenizer_files().get, checkpoint.path)
    ids = np.array(tokenizer.encode(calibration_text.read_text(text), bos=False), np.int64)
    windows = evaluation.windows(ids, 512, tokenizer.bos)
    return windows[np.linspace(0, len(windows) - 1, count).round().astype(int)]


def main() -> None:
    """Print one line for each width, write all pairs as JSON."""
    options = parse()
    note = lambda text: print(text, file=sys.stderr, flush=True)
    options.output.mkdir(parents=True, exist_ok=True)
    checkpoint = open_checkpoint(options.model)
    between = sum(options.bits) / len(options.bits)
    settings = QuantizeSettings(
        bits=between, method="shiftadd", effort=options.effort, calibration_text=str(options.calib)
    )
    store = StatisticsStore(options.output / f"calibration-{between:g}-{options.effort}")
    decoder = read_config(checkpoint.config, checkpoint.path)
    report = lambda stage, share, what: note(f"{stage} {share:.0%}: {what}")
    run = Calibrated(checkpoint, decoder, settings, store, report)
    run.measure()
    blocks = decoder.blocks()[:: options.every]
    scored = windows_of(checkpoint, options.text, options.windows)
    for bits in options.bits:
        rows = list(ranking.pairs(checkpoint, run, settings, bits, scored, blocks, note))
        _, expected, measured = zip(*rows, strict=True)
        tau = ranking.rank_correlation(list(expected), list(measured))
        path = options.output / f"{bits}bit.json"
        path.write_text(json.dumps({"tau": tau, "linears": rows}, indent=1) + "\n")
        print(f"{bits} bits, {len(rows)} linears: Kendall's tau {tau:.3f} ({path})", flush=True)


if __name__ == "__main__":
    main()
