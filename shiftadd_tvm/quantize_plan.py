"""What `quantize` would make of a checkpoint: its shapes checked whole, bits and sizes, no work."""

import dataclasses
import math
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path

import numpy as np

from shiftadd_tvm import families, latencies, packed_config
from shiftadd_tvm.bcq import MAX_BITS
from shiftadd_tvm.checkpoint import open_checkpoint
from shiftadd_tvm.checkpoint_base import Checkpoint
from shiftadd_tvm.errors import BadFileError, UnsupportedError, UsageError
from shiftadd_tvm.families import Decoder
from shiftadd_tvm.packed_layout import Layout
from shiftadd_tvm.settings import QuantizeSettings

# tensors of old checkpoints that nothing needs: tables that follow from the config, causal masks
BENIGN = (".rotary_emb.inv_freq", ".attn.bias", ".attention.bias", ".masked_bias")


def plan(source: str | Path | Checkpoint, settings: QuantizeSettings) -> dict[str, object]:
    """Validate the checkpoint's shapes and return what `quantize` would make of it."""
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source)
    layout = make_layout(checkpoint, settings)
    linears = layout.linears()
    dtypes = {n: checkpoint.dtype(n) for n in layout.plain_shapes() if n in checkpoint}
    linear_bytes = layout.linear_bytes()
    if settings.allocates:  # the bits of each linear are not known yet, their average is
        missing = settings.bits - layout.nominal_bits()
        linear_bytes += math.ceil(missing * layout.linear_weights() / 8)
    return {
        "model_type": checkpoint.config["model_type"],
        "stored_as": checkpoint.stored_as(),
        "layers": [
            {"name": n, "bits": layout.bits[n], "shape": list(s)} for n, s in linears.items()
        ],
        "nominal_bits": settings.bits if settings.allocates else layout.nominal_bits(),
        "effective_bits": linear_bytes * 8 / layout.linear_weights(),
        "linear_bytes": linear_bytes,
        "estimated_bytes": linear_bytes + layout.plain_bytes(dtypes),
    }


def bits_within(checkpoint: Checkpoint, settings: QuantizeSettings, size: int) -> float:
    """Return the most bits a weight, to two decimals, of a packed model of at most `size` bytes.

    A method without calibration gets whole bits. Raises `UsageError` where one bit is too many.
    """
    sizes = []
    for bits in (1, 2):
        found = plan(checkpoint, dataclasses.replace(settings, bits=bits, mixed=False))
        sizes.append(int(str(found["estimated_bytes"])))
    bits_each = 1 + (size - sizes[0]) / (sizes[1] - sizes[0])
    if bits_each < 1:
        raise UsageError(
            f"--target-size is {size / 1e6:.1f} MB, this model at 1 bit a weight needs "
            f"{sizes[0] / 1e6:.1f} MB; allow more, or store its embedding in 8 bits "
            "(--embedding-bits 8)."
        )
    rounded = math.floor(min(bits_each, MAX_BITS) * 100) / 100
    return rounded if settings.calibrated else math.floor(rounded)


def bits_within_latency(checkpoint: Checkpoint, settings: QuantizeSettings) -> float:
    """Return the bits a weight, to two decimals, at which all linears of a decode step, if alike, take
    `settings.latency`. Raises `UsageError` where the fewest bits take longer, or times are missing."""
    decoder, wanted = check_tensors(checkpoint), settings.latency
    assert wanted is not None
    shapes = list(decoder.linear_shapes().values())
    latencies.check(settings.latencies, shapes)
    tables = [settings.latencies[latencies.shape_name(shape)] for shape in shapes]
    widths = sorted(set.intersection(*map(set, tables)))
    times = [sum(table[bits] for table in tables) * len(decoder.blocks()) for bits in widths]
    if wanted < times[0]:
        raise UsageError(
            f"--target-latency is {wanted / 1e3:.3f} ms, the linears of this model take "
            f"{times[0] / 1e3:.3f} ms at {widths[0]} bits; allow more."
        )
    return math.floor(float(np.interp(wanted, times, widths)) * 100) / 100


def make_layout(checkpoint: Checkpoint, settings: QuantizeSettings) -> Layout:
    """Return the layout to be written, the checkpoint's tensors found as its config says."""
    return packed_config.make_layout(check_tensors(checkpoint), settings)


def check_tensors(checkpoint: Checkpoint) -> Decoder:
    """Return the decoder that a checkpoint's config describes, if its tensors are that model's.

    Raises `BadFileError` for what is missing or of another shape, `UnsupportedError` for a model that
    is not supported, or only in part: a tensor that nothing would read is part of another model.
    """
    refuse_quantized(checkpoint)
    decoder = families.read_config(checkpoint.config, checkpoint.path)
    expected = decoder.tensor_shapes()
    check_named(checkpoint, expected, lambda name: _known(checkpoint, decoder, name, expected))
    return decoder


def refuse_quantized(checkpoint: Checkpoint) -> None:
    """Raise `UnsupportedError` for weights of a quantization that was not read as floats."""
    if "quantization_config" in checkpoint.config:
        found = checkpoint.config["quantization_config"]
        method = found.get("quant_method") if isinstance(found, dict) else found
        raise UnsupportedError(
            f"{checkpoint.path} is quantized already (quant_method {method!r}), expected float "
            "weights, GPTQ or AWQ; give the original checkpoint."
        )


def check_named(
    checkpoint: Checkpoint, expected: Mapping[str, tuple[int, ...]], known: Callable[[str], bool]
) -> None:
    """Raise unless a checkpoint's tensors are the `expected` ones, beside what else is `known`."""
    extra = [name for name in checkpoint.names() if not known(name)]
    if extra:
        raise UnsupportedError(
            f"{checkpoint.path}: tensor {extra[0]}{_and_more(extra)} is not part of a "
            f"{checkpoint.config['model_type']} model as shiftadd-tvm knows it, so the model would "
            "compute something else without it; use a checkpoint of the plain model."
        )
    for name, shape in expected.items():
        found_shape = checkpoint.shape(name)  # raises where the tensor is missing
        if found_shape != shape:
            raise BadFileError(
                f"{checkpoint.path}: tensor {name} has shape {list(found_shape)}, expected "
                f"{list(shape)} by its config.json; use the config.json of this checkpoint."
            )


def _known(checkpoint: Checkpoint, decoder: Decoder, name: str, expected: Container[str]) -> bool:
    if name in expected or name.endswith(BENIGN):
        return True
    return decoder.tied_embeddings and name == f"{decoder.head}.weight"  # a copy of the embedding


def _and_more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
