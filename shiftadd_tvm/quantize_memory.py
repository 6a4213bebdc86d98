"""How much memory `quantize` needs, by the sizes that decide: measured on small models, rounded up."""

import math
from collections.abc import Iterator
from dataclasses import replace

from shiftadd_tvm import cpu
from shiftadd_tvm.decoder_model import Decoder
from shiftadd_tvm.effort import SENSITIVITY_BLOCKS, SEQUENCES, SLAB_TOKENS, WHOLE_BLOCKS
from shiftadd_tvm.errors import UsageError
from shiftadd_tvm.settings import QuantizeSettings

BASE = 600_000_000  # Python with torch
# bytes for each weight of the layers that are quantized together, or of the head, whose logits are
# the golden ones
PER_WEIGHT = 24
PER_HEAD_WEIGHT = 12
PER_CODED_WEIGHT = 36  # of a group under H: as read and rotated, its slopes, codes and their copies
PER_MOMENT = 48  # of H: itself, rotated, ordered in float64, its factor and their inverses
GROUPS = 2  # that are coded together
SLABS = 4  # of states: what enters a block and leaves it, and what is computed between
WINDOW = 512  # tokens that are tuned on together
PER_COMPARED_WEIGHT = 8  # of a block: as it is, and coded
PER_TUNED_WEIGHT = 4
LEFT = 300_000_000  # what earlier stages leave in the heap while a model is tuned
PER_CACHED = 6  # of keys and values of a text that is written: they grow by copies, which leave holes
PER_ACTIVATION = 4 * 4  # kept for the way back, with what is computed from it


def peak(decoder: Decoder, settings: QuantizeSettings, *, spill: bool = False) -> int:
    """Return the bytes that quantizing `decoder` needs at most, about; with `spill`, what passes
    between blocks lies on disk."""
    shapes = decoder.linear_shapes()
    groups = [[(p.outputs, p.inputs) for p in group] for group in decoder.groups]
    layer = max(sum(math.prod(shape) for shape in group) for group in groups)
    head = decoder.vocabulary * decoder.width
    plain = max(layer * PER_WEIGHT, head * PER_HEAD_WEIGHT)
    if not settings.calibrated:
        return BASE + plain
    inputs = max(columns for _, columns in shapes.values())
    tokens = settings.tokens
    token = decoder.hidden * 4
    states, slab = tokens * token, min(tokens, SLAB_TOKENS) * token
    walk = (0 if spill else states) + SLABS * slab + sum(group[0][1] ** 2 for group in groups) * 4
    if settings.measures_losses:
        compared = min(tokens, settings.amounts.sensitivity_tokens) * token
        variants = SENSITIVITY_BLOCKS * len(shapes) * compared
        block = sum(math.prod(shape) for shape in shapes.values())
        walk = max(walk, variants + block * PER_COMPARED_WEIGHT + head * PER_HEAD_WEIGHT)
    coding = GROUPS * (layer * PER_CODED_WEIGHT + inputs**2 * PER_MOMENT)
    tuning = _tuning(decoder) if settings.steps else 0
    writing = _writing(decoder, settings.own_tokens) if settings.own_tokens else 0
    return BASE + max(plain, walk, coding, tuning, writing)


def check(
    decoder: Decoder, settings: QuantizeSettings, limit: float | None = None, *, spill: bool = False
) -> int:
    """Return `peak`; raise `UsageError` if it exceeds `limit` GB, or else the machine's memory."""
    needed = peak(decoder, settings, spill=spill)
    allowed = cpu.memory() if limit is None else limit * 1e9
    if needed <= allowed:
        return needed
    who = "this machine has" if limit is None else "--max-memory is"
    remedy = "use a machine with more memory" if limit is None else "allow more"
    for way, changed, on_disk in _ways(settings, spill):
        if peak(decoder, changed, spill=on_disk) < needed:
            remedy += f", or {way}"
            break
    raise UsageError(
        f"{who} {allowed / 1e9:.3g} GB, quantizing this model needs about {needed / 1e9:.1f} GB; "
        f"{remedy}."
    )


def _ways(
    settings: QuantizeSettings, spill: bool
) -> Iterator[tuple[str, QuantizeSettings, bool]]:
    """Yield what a user can do to need less: its words, settings and `spill`."""
    yield "keep what passes between blocks on disk by --spill", settings, True
    if settings.steps:
        fast = replace(settings, effort="fast")
        yield "leave the tuning of the whole model out by --effort fast", fast, spill
    if settings.calibrated:
        given = replace(settings, calibration_text="text", own_text=0.0)
        yield "give a text by --calib, which the model need not write", given, spill


def _weights(decoder: Decoder) -> int:
    return decoder.layers * sum(math.prod(shape) for shape in decoder.linear_shapes().values())


def _writing(decoder: Decoder, tokens: int) -> int:
    """Return what a model holds that writes so many tokens: itself, and keys and values."""
    sequences = min(SEQUENCES, -(-tokens // WINDOW))
    cached = 2 * decoder.layers * decoder.kv_heads * decoder.head_dim * WINDOW * sequences
    head = decoder.vocabulary * decoder.width
    return 4 * (_weights(decoder) + head) + PER_CACHED * cached


def _tuning(decoder: Decoder) -> int:
    weights = _weights(decoder)
    head = decoder.vocabulary * decoder.width
    blocks = -(-decoder.layers // WHOLE_BLOCKS) + 1  # that are kept whole, and the one on the way
    activations = blocks * _activations(decoder, 1)
    return weights * PER_TUNED_WEIGHT + head * PER_HEAD_WEIGHT + activations + LEFT


def _activations(decoder: Decoder, windows: int) -> int:
    """Return the bytes that a block keeps of so many windows for the way back."""
    widths = sum(rows + columns for rows, columns in decoder.linear_shapes().values())
    return windows * WINDOW * widths * PER_ACTIVATION
