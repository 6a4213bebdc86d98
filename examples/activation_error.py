"""How exact 13-bit activations are: one power of two a token, or one for each 128 of its inputs.

Runs a checkpoint on one window of text, and multiplies what its linears read by their weights, once as it
is and once rounded; the error of a token is its largest wrong output by its largest output, that of an
input group the largest of its tokens.

    .venv/bin/python examples/activation_error.py
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from demo import MODEL, TEXT
from fetch_data import cache_folder

from shiftadd_tvm import bcq, calibration_text, families
from shiftadd_tvm.checkpoint import open_checkpoint
from shiftadd_tvm.checkpoint_base import Checkpoint
from shiftadd_tvm.ops import lut
from shiftadd_tvm.quantizers.alternating import make_rotation
from shiftadd_tvm.reference import ReferenceModel
from shiftadd_tvm.runtime.text import Tokenizer
from shiftadd_tvm.settings import QuantizeSettings

WINDOW, GROUP = 512, 128
BITS = lut.FORMATS["int16"].bits

Array = np.ndarray


def activations(checkpoint: Checkpoint, text: Path) -> dict[tuple[str, ...], Array]:
    """Return what every input group reads on the first window, float32 (T, K)."""
    tokenizer = Tokenizer(checkpoint.tokenizer_files().get, checkpoint.path)
    ids = np.array(tokenizer.encode(calibration_text.read_text(text), bos=False)[:WINDOW])
    model, seen = ReferenceModel(checkpoint), {}
    for group in families.read_config(checkpoint.config).input_groups():
        note = lambda module, inputs, group=group: seen.update({group: inputs[0][0].numpy().copy()})
        model.model.get_submodule(group[0]).register_forward_pre_hook(note)
    model.hidden(ids[None])
    return seen


def rounded(values: Array, group: int) -> Array:
    """Return values (T, K) as whole numbers times one power of two for each `group` of a row."""
    parts = values.astype(np.float64).reshape(len(values), -1, group)
    largest = np.abs(parts).max(-1, keepdims=True)
    unit = 2.0 ** (np.floor(np.log2(np.maximum(largest, 1e-30))) + 1 - BITS)
    top = 2**BITS - 1
    return (np.clip(np.rint(parts / unit), -top, top) * unit).reshape(values.shape)


def errors(values: Array, weights: Array) -> Iterator[float]:
    """Yield the error with one power of two a token, and with one for each group of inputs."""
    inputs = values.shape[1]
    largest = np.abs(values @ weights.T).max(1)
    for group in (inputs, np.gcd(inputs, GROUP)):
        wrong = (rounded(values, int(group)) - values) @ weights.T.astype(np.float64)
        yield float((np.abs(wrong).max(1) / largest).max())


def main() -> None:
    """Print the errors of all input groups, with the rotation and without."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--model", type=Path, default=cache_folder() / MODEL)
    parser.add_argument("--text", type=Path, default=cache_folder() / TEXT)
    options = parser.parse_args()
    checkpoint = open_checkpoint(options.model)
    found: dict[str, list[list[float]]] = {"rotated": [], "as they are": []}
    for group, values in activations(checkpoint, options.text).items():
        weights = np.concatenate([checkpoint.read(f"{linear}.weight") for linear in group])
        rotation = make_rotation(values.shape[1], QuantizeSettings())
        found["as they are"].append(list(errors(values, weights)))
        if rotation is not None:
            turned = (bcq.rotate(values, rotation), bcq.rotate(weights, rotation))
            found["rotated"].append(list(errors(*turned)))
    for name, pairs in found.items():
        for what, ones in zip(("a token", f"{GROUP} inputs"), zip(*pairs, strict=True), strict=False):
            print(
                f"activations {name}, a power of two for {what}: median {np.median(ones):.1e}, "
                f"largest {max(ones):.1e} of {len(ones)} groups"
            )


if __name__ == "__main__":
    main()
