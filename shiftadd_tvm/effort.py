"""How much work the calibrated quantizer does: named amounts, so that a plan can say what it costs."""

from dataclasses import dataclass

SLAB_TOKENS = 1 << 14  # of calibration that pass through a block together
SEQUENCES = 32  # that a model writes together
SENSITIVITY_LENGTH = 256  # tokens of a window on which linears are compared
SENSITIVITY_BLOCKS = 6  # whose linears are compared in one walk
WHOLE_BLOCKS = 3  # of so many blocks tuning keeps the activations of one, and computes the others' again


@dataclass(frozen=True)
class Effort:
    """Tokens of calibration, rounds of better codes and refitted scales, steps of end-to-end tuning."""

    tokens: int
    rounds: int
    steps: int
    sensitivity_tokens: int = 768  # on which the losses of different linears are measured
    one_width: bool = False  # measure sensitivities at one number of bits, and infer the others


EFFORTS = {
    "fast": Effort(tokens=8192, rounds=1, steps=0, sensitivity_tokens=128, one_width=True),
    "normal": Effort(tokens=32768, rounds=4, steps=96),
    "best": Effort(tokens=131072, rounds=16, steps=768, sensitivity_tokens=2048),
}
