"""What `quantize` would make of an encoder's checkpoint: its tensors checked whole, then a graph.

The packed model is one of kind `onnx` (`onnx_packed.py`) whose config.json keeps Hugging Face's keys:
`model_type` says which encoder it is. A table of positions for images of another size than config.json
says is interpolated, as transformers does for DINOv2; so image_size may be changed.
"""

import math
from collections.abc import Iterator, Mapping

import numpy as np

from shiftadd_tvm import encoder_families, encoder_graph, onnx_quantization
from shiftadd_tvm.checkpoint_base import Checkpoint
from shiftadd_tvm.decoder_model import Projection
from shiftadd_tvm.encoder_model import Encoder, Head, Images
from shiftadd_tvm.onnx_linears import Prepared
from shiftadd_tvm.onnx_quantization import GraphPlan, Source
from shiftadd_tvm.quantize_plan import check_named, refuse_quantized
from shiftadd_tvm.settings import QuantizeSettings

EXAMPLES, LENGTH = 2, 16  # of the golden inputs: how many, and tokens of a text
SHORTER = 5  # tokens that the second text of the golden inputs lacks

Array = np.ndarray
Tensors = dict[str, Array]


def check(checkpoint: Checkpoint) -> tuple[Encoder, tuple[Head, ...]]:
    """Return the encoder that a checkpoint's config describes, and those of its heads that are there.

    Raises `BadFileError` for what is missing or of another shape, `UnsupportedError` for a model that
    is not supported, or only in part.
    """
    refuse_quantized(checkpoint)
    encoder = encoder_families.read_config(checkpoint.config, checkpoint.path)
    heads = tuple(head for head in encoder.outputs if _is_there(head, checkpoint))
    left = {n for head in encoder.outputs if head not in heads for n in head.tensor_shapes()}
    expected = {n: shape for n, shape in encoder.tensor_shapes().items() if n not in left}
    if isinstance(encoder.embedded, Images) and _grid(encoder, checkpoint):
        del expected[encoder.embedded.positions]
    names = encoder.tensor_shapes().keys()
    trained = lambda name: (encoder.base + name).startswith(encoder.unread)
    known = lambda name: name in names or name.startswith(encoder.unread) or trained(name)
    check_named(checkpoint, expected, known)
    return encoder, heads


def _is_there(head: Head, checkpoint: Checkpoint) -> bool:
    return not head.optional or any(name in checkpoint for name in head.tensor_shapes())


def _grid(encoder: Encoder, checkpoint: Checkpoint) -> int:
    """Return the side of the square of patches that the positions of a checkpoint are for; 0 where it
    is the one that config.json says, or none."""
    embedded = encoder.embedded
    assert isinstance(embedded, Images)
    if embedded.positions not in checkpoint:
        return 0
    shape, front = checkpoint.shape(embedded.positions), len(embedded.tokens)
    if len(shape) != 3 or shape == (1, embedded.placed, encoder.hidden):
        return 0
    side = math.isqrt(max(shape[1] - front, 0))
    return side if shape == (1, front + side * side, encoder.hidden) else 0


def plan(checkpoint: Checkpoint, settings: QuantizeSettings) -> GraphPlan:
    """Check everything that can be checked, and return what `quantize` would make of a checkpoint."""
    encoder, heads = check(checkpoint)
    read = _Reading(checkpoint, encoder)
    model = encoder_graph.write(encoder, heads, read.tensor)
    dense = [p.path for head in heads for p in head.steps if isinstance(p, Projection)]
    if isinstance(encoder.embedded, Images):
        dense.insert(0, encoder.embedded.projection)
        limits = {}
    else:
        limits = {encoder_graph.TOKENS: encoder.embedded.limit}
    prepared = Prepared(model, read, encoder.input_groups(), dense)
    source = Source(
        path=checkpoint.path,
        source_hash=checkpoint.source_hash(),
        nbytes=sum(checkpoint.stored_bytes(name) for name in checkpoint.names()),
        stored_as=checkpoint.stored_as(),
        config=checkpoint.config,
        files=checkpoint.tokenizer_files(),
        limits=limits,
        inputs=golden_inputs(encoder, checkpoint.config, settings.seed),
    )
    return onnx_quantization.plan_prepared(source, prepared, settings)


class _Reading(Mapping[str, Array]):
    """The weights of the linears, each read when it is asked for; and all other tensors."""

    def __init__(self, checkpoint: Checkpoint, encoder: Encoder) -> None:
        self._checkpoint, self._encoder = checkpoint, encoder
        self._linears = list(encoder.linear_shapes())

    def __getitem__(self, linear: str) -> Array:
        return self._checkpoint.read(f"{linear}.weight")

    def __iter__(self) -> Iterator[str]:
        return iter(self._linears)

    def __len__(self) -> int:
        return len(self._linears)

    def tensor(self, name: str) -> Array:
        """Return a tensor in float32, positions for the images that config.json says."""
        embedded, values = self._encoder.embedded, self._checkpoint.read(name)
        if not isinstance(embedded, Images) or name != embedded.positions:
            return values
        side = _grid(self._encoder, self._checkpoint)
        return resized(values, embedded, side) if side else values


def resized(table: Array, images: Images, side: int) -> Array:
    """Return positions (1, tokens + side², hidden) for the patches of `images`, as transformers
    interpolates them: by cubics, those of the tokens as they are."""
    import torch

    front, patches = len(images.tokens), images.patches
    grid = torch.from_numpy(table[:, front:].reshape(1, side, side, -1)).permute(0, 3, 1, 2)
    found = torch.nn.functional.interpolate(
        grid, patches, mode="bicubic", align_corners=False, antialias=images.smoothed
    )
    rows = found.permute(0, 2, 3, 1).reshape(1, math.prod(patches), -1).numpy()
    return np.concatenate([table[:, :front], rows], axis=1)


def golden_inputs(encoder: Encoder, config: Mapping[str, object], seed: int) -> Tensors:
    """Return inputs of a normal distribution, or random words, the second text shorter than the first."""
    rng, embedded = np.random.Generator(np.random.PCG64(seed)), encoder.embedded
    if isinstance(embedded, Images):
        image = (EXAMPLES, embedded.channels, embedded.height, embedded.width)
        return {"pixel_values": rng.standard_normal(image).astype(np.float32)}
    shape = (EXAMPLES, min(LENGTH, embedded.limit))
    found = {"input_ids": rng.integers(0, embedded.vocabulary, shape)}
    found["attention_mask"] = np.ones(shape, np.int64)
    padding = config.get("pad_token_id")
    found["input_ids"][1, -SHORTER:] = padding if isinstance(padding, int) else 0
    found["attention_mask"][1, -SHORTER:] = shape[1] <= SHORTER
    if embedded.types:
        found["token_type_ids"] = rng.integers(0, embedded.kinds, shape)
    return found
