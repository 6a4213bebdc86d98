"""How much work the calibrated quantizer does: named amounts, so that a plan can say what it costs."""

from dataclasses import dataclass

SLAB_TOKENS = 1 << 14  # of calibration that pass through a block together
GRADIENT_ROWS = 4  # windows that are walked back through a block together
WHOLE_BLOCKS = 3  # of so many blocks tuning keeps the activations of one, and computes the others' again


@dataclass(frozen=True)
class Effort:
    """Tokens of calibration, rounds of better codes and refitted scales, steps of end-to-end tuning."""

    tokens: int
    rounds: int
    steps: int
    gradient_windows: int = 8  # by which output errors of different linears compare
    one_width: bool = False  # measure sensitivities at one number of bits, and infer the others


EFFORTS = {
    "fast": Effort(tokens=8192, rounds=1, steps=0, gradient_windows=4, one_width=True),
    "normal": Effort(tokens=32768, rounds=4, steps=96),
    "best": Effort(tokens=131072, rounds=16, steps=768),
}
