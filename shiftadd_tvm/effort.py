"""How much work the calibrated quantizer does: named amounts, so that a plan can say what it costs."""

from dataclasses import dataclass

SLAB_TOKENS = 1 << 14  # of calibration that pass through a block together
SEQUENCES = 32  # that a model writes together
SENSITIVITY_BLOCKS = 6  # whose linears are compared in one walk
WHOLE_BLOCKS = 3  # of so many blocks tuning keeps the activations of one, and computes the others' again


@dataclass(frozen=True)
class Effort:
    """Tokens of calibration, rounds of better codes and refitted scales, steps of end-to-end tuning."""

    tokens: int  # of a calibration text: the more, the less is fitted to these very tokens
    own_tokens: int  # that the model writes where there is no text: each costs far more than one read
    rounds: int
    steps: int
    sensitivity_tokens: int  # on which the losses of different linears are measured
    one_width: bool = False  # measure sensitivities at one number of bits, and infer the others


EFFORTS = {
    "fast": Effort(8192, 8192, rounds=1, steps=0, sensitivity_tokens=128, one_width=True),
    "normal": Effort(131072, 32768, rounds=4, steps=160, sensitivity_tokens=1536),
    "best": Effort(262144, 131072, rounds=16, steps=768, sensitivity_tokens=4096),
}
