"""Child process of `original.py`: run a checkpoint on windows of tokens, leave its states and its head.

    python -m shiftadd_tvm.original_states '{"source": ..., "folder": ..., "config": ..., "threads": ...}'

The last line of its output is {"cap": ...}; an error is a sentence on stderr, and its exit code.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shiftadd_tvm import cpu
from shiftadd_tvm.checkpoint import open_checkpoint
from shiftadd_tvm.dequantized import DequantizedModel
from shiftadd_tvm.errors import ShiftAddError
from shiftadd_tvm.families import read_config
from shiftadd_tvm.original import HEAD, STATES, WINDOWS
from shiftadd_tvm.packed import is_packed, open_packed
from shiftadd_tvm.reference import ReferenceModel

_WINDOWS = 64  # whose states exist together


def compute(request: dict[str, Any]) -> float:
    """Write states and head into the request's folder; return the soft cap of the logits."""
    torch.set_num_threads(request["threads"] or cpu.cores())
    path, config = request["source"], request["config"] and Path(request["config"])
    packed = is_packed(path)
    source = DequantizedModel(open_packed(path)) if packed else open_checkpoint(path, config)
    reference, folder = ReferenceModel(source), Path(request["folder"])
    windows, decoder = np.load(folder / WINDOWS), read_config(source.config)
    found = np.lib.format.open_memmap(
        folder / STATES, "w+", np.float32, (*windows.shape, decoder.width)
    )
    for start in range(0, len(windows), _WINDOWS):
        part = slice(start, start + _WINDOWS)
        found[part] = reference.hidden(windows[part]).numpy()
    np.save(folder / HEAD, reference.head().numpy())
    return decoder.logit_cap


def main(argument: str) -> int:
    """Carry out the request, JSON."""
    try:
        cap = compute(json.loads(argument))
    except ShiftAddError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(json.dumps({"cap": cap}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
