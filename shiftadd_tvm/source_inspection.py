"""Say of a checkpoint whether it is supported, what quantizing it takes, and why not if not.

Sizes are those of `quantize_plan`, memory and time those of `quantize_memory` and `quantize_time`: the
numbers that the verb `quantize` goes by. Of a model that is not supported, only what its tensors say.
"""

import importlib
import math
import re
from collections.abc import Iterable
from pathlib import Path

from shiftadd_tvm import (
    cpu,
    encoder_families,
    families,
    onnx_workflow,
    quantize_memory,
    quantize_time,
)
from shiftadd_tvm.checkpoint_base import Checkpoint
from shiftadd_tvm.effort import EFFORTS
from shiftadd_tvm.encoder_model import STATES
from shiftadd_tvm.errors import UnsupportedError
from shiftadd_tvm.families import Decoder
from shiftadd_tvm.onnx_packed import GraphLayout
from shiftadd_tvm.packed_config import make_coding, make_layout
from shiftadd_tvm.settings import QuantizeSettings

Fields = dict[str, object]

BITS = (2, 3, 4)
CONTEXT = 2048  # tokens of the cache in `running_bytes`; as compile has it
DATA_FREE = "data-free"  # --method alternating
PLAIN_BYTES = 2  # of a value that stays as it is, in 16 bits


def inspect_source(path: str | Path, config: Path | None) -> Fields:
    """Return what the checkpoint at `path` is; raises for what is none, or is damaged."""
    try:
        checkpoint = importlib.import_module("shiftadd_tvm.checkpoint").open_checkpoint(
            path, config
        )
    except UnsupportedError as error:
        return {**_HEAD, "supported": False, "reason": str(error), "nearest": None}
    found = _tensors(checkpoint)
    try:
        if encoder_families.is_encoder(checkpoint.config):
            return {**_HEAD, **found, **_encoder(checkpoint)}
        quantize_plan = importlib.import_module("shiftadd_tvm.quantize_plan")
        quantize_plan.check_tensors(checkpoint)
    except UnsupportedError as error:
        return {
            **_HEAD,
            **found,
            "supported": False,
            "reason": str(error),
            "nearest": nearest(checkpoint.names()),
            "packed": [_unknown_size(checkpoint, bits) for bits in BITS],
        }
    decoder = families.read_config(checkpoint.config, checkpoint.path)
    return {**_HEAD, **found, **_supported(checkpoint, decoder)}


_HEAD: Fields = {"kind": "checkpoint", "version": None, "effective_bits": None}


def _tensors(checkpoint: Checkpoint) -> Fields:
    names = checkpoint.names()
    return {
        "version": checkpoint.config.get("transformers_version"),
        "model_type": checkpoint.config.get("model_type"),
        "stored_as": checkpoint.stored_as(),
        "tensors": len(names),
        "weights": sum(math.prod(checkpoint.shape(name)) for name in names),
        "total_bytes": sum(checkpoint.stored_bytes(name) for name in names),
    }


def _supported(checkpoint: Checkpoint, decoder: Decoder) -> Fields:
    bits = importlib.import_module("shiftadd_tvm.scoring").checkpoint_bits(checkpoint)
    return {
        "supported": True,
        "bits": bits,
        "effective_bits": bits,
        "layers": decoder.layers,
        "hidden": decoder.hidden,
        "vocabulary": decoder.vocabulary,
        "context": decoder.positions,
        "packed": [_size(checkpoint, decoder, bits) for bits in BITS],
        "quantizing": [_work(decoder, method) for method in (DATA_FREE, *EFFORTS)],
        "machine_memory_bytes": cpu.memory(),
    }


def _encoder(checkpoint: Checkpoint) -> Fields:
    """Return what an encoder is, and its packed sizes; the rest of it is kept in float32."""
    encoder, heads = importlib.import_module("shiftadd_tvm.encoder_plan").check(checkpoint)
    shapes, embedded = encoder.linear_shapes(), encoder.embedded
    coded = sum(map(math.prod, shapes.values()))
    stored = sum(map(checkpoint.stored_bytes, checkpoint.names()))
    kept = 4 * (sum(math.prod(checkpoint.shape(name)) for name in checkpoint.names()) - coded)
    packed: list[Fields] = []
    for bits in BITS:
        coding = make_coding(QuantizeSettings(bits=bits), list(shapes))
        layout = GraphLayout(**coding, shapes=dict(shapes), members=tuple(encoder.input_groups()))
        size = layout.linear_bytes() + kept
        effective = layout.effective_bits()
        packed.append({"bits": bits, "effective_bits": effective, "bytes": size})
    return {
        "supported": True,
        "layers": encoder.layers,
        "hidden": encoder.hidden,
        "input": str(embedded),
        "outputs": [STATES, *(head.output for head in heads)],
        "packed": packed,
        "quantizing": [
            {
                "method": DATA_FREE,
                "memory_bytes": onnx_workflow.peak(stored),
                "seconds": round(quantize_time.seconds(QuantizeSettings(bits=3), coded)),
            }
        ],
        "machine_memory_bytes": cpu.memory(),
    }


def _size(checkpoint: Checkpoint, decoder: Decoder, bits: int) -> Fields:
    """Return the size of a packed model, and what its artifact holds in memory while it runs."""
    layout = make_layout(decoder, QuantizeSettings(bits=bits))
    dtypes = {name: checkpoint.dtype(name) for name in layout.plain_shapes() if name in checkpoint}
    size = layout.linear_bytes() + layout.plain_bytes(dtypes)
    cached = 2 * 4 * decoder.layers * decoder.kv_heads * decoder.head_dim
    return {
        "bits": bits,
        "effective_bits": layout.effective_bits(),
        "bytes": size,
        "running_bytes": size + cached * min(decoder.positions, CONTEXT),
    }


def _work(decoder: Decoder, method: str) -> Fields:
    """Return memory and time of a method at 3 bits: neither depends much on the bits."""
    if method == DATA_FREE:
        settings = QuantizeSettings(bits=3)
    else:
        settings = QuantizeSettings(bits=3, method="shiftadd", effort=method)
    weights = decoder.layers * sum(map(math.prod, decoder.linear_shapes().values()))
    return {
        "method": method,
        "memory_bytes": quantize_memory.peak(decoder, settings),
        "seconds": round(quantize_time.seconds(settings, weights)),
    }


def _unknown_size(checkpoint: Checkpoint, bits: int) -> Fields:
    """Return what a packed model would take if every matrix inside the blocks were coded."""
    coded = plain = 0
    for name in checkpoint.names():
        count = math.prod(checkpoint.shape(name))
        inside = len(checkpoint.shape(name)) > 1 and re.search(r"\.\d+\.", name) is not None
        coded, plain = (coded + count, plain) if inside else (coded, plain + count)
    return {"bits": bits, "bytes": coded * bits // 8 + plain * PLAIN_BYTES}


def nearest(names: Iterable[str]) -> str | None:
    """Return the supported model type whose tensors' names are most like `names`, if any are."""
    found = _shape_of(names)
    likeness = {}
    modules: dict[str, families.Family | encoder_families.Family] = {
        **{name: families.load({"model_type": name}) for name in families.names()},
        **{name: encoder_families.load(name) for name in encoder_families.names()},
    }
    for family, module in modules.items():
        own = _shape_of(module.read_config(module.tiny_config()).tensor_shapes())
        likeness[family] = len(found & own) / len(found | own)
    # several families name their tensors as LLaMA does, which is the plainest of them
    best = max(likeness, key=lambda family: (likeness[family], family == "llama"))
    return best if likeness[best] else None


def _shape_of(names: Iterable[str]) -> set[str]:
    """Return names without the numbers of blocks, and without what wraps the whole model."""
    return {re.sub(r"\d+", "N", name).removeprefix("model.") for name in names}
