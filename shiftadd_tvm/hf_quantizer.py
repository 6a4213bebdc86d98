"""Load a packed model with transformers: `AutoModelForCausalLM.from_pretrained("packed")`.

Importing this module registers the method "shiftadd_bcq"; nothing else does, since transformers looks
for no plug-ins and `import shiftadd_tvm` stays light:

    import shiftadd_tvm.hf_quantizer
    model = transformers.AutoModelForCausalLM.from_pretrained("packed", dtype="float32")

Each coded linear keeps its planes and scales as they are stored and computes

    y = r o (codes (s o H (D x))) + bias,   codes = sum_i c[i] b_i

with the activation rotated at run time; r, s and c are exact sums of powers of two. `model.dequantize()`
turns them into ordinary linears, whose weights are those of the dequantized reference bit for bit: it
takes the memory of a float model, and is faster. An 8-bit embedding is widened when it is loaded.
Nothing is compiled, and nothing is looked up: this is for evaluation by other people's tools.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from shiftadd_tvm import bcq, packed_config, sparse_experts
from shiftadd_tvm.coded_modules import hadamard
from shiftadd_tvm.dequantized import dequantize
from shiftadd_tvm.errors import UnsupportedError
from shiftadd_tvm.packed_layout import Layout
from shiftadd_tvm.powers import decode_terms

Sizes = tuple[int, ...]


class PackedLinear(torch.nn.Module):
    """A linear of planes and scales; the tensors of its buffers are those of the packed model."""

    def __init__(
        self,
        shape: tuple[int, int],
        buffers: dict[str, Sizes],
        block: int,
        scale_block: tuple[int, int],
        leader: "PackedLinear | None",
        bias: bool,
    ) -> None:
        """Make empty buffers; `leader` holds column_terms and signs for its whole input group."""
        super().__init__()
        self.out_features, self.in_features = shape
        self._block, self._scale_block = block, scale_block
        self._leader = [leader or self]  # in a list: not a submodule of each linear
        for name, sizes in buffers.items():
            self.register_buffer(name, torch.empty(sizes, dtype=torch.uint8))
        self.bias = torch.nn.Parameter(torch.empty(shape[0]), requires_grad=False) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs (..., N) for activations (..., K), in their dtype."""
        values = x.float()
        if self._block > 1:
            signs = _signs(self._leader[0].get_buffer("signs"), self.in_features)
            values = hadamard(values * signs, self._block)
        weight = self.weight_of_rotated()
        y = torch.nn.functional.linear(values, weight).to(x.dtype)
        return y if self.bias is None else y + self.bias

    def weight_of_rotated(self) -> Tensor:
        """Return the weights of the rotated activation, float32 (N, K)."""
        planes = _signs(self.get_buffer("planes"), self.in_features)  # (bits, N, K)
        if "plane_terms" not in self._buffers:
            rows, columns = self._scale_block
            levels = _decoded(self.get_buffer("block_terms"))
            levels = levels.repeat_interleave(rows, 1)[:, : self.out_features]
            levels = levels.repeat_interleave(columns, 2)[:, :, : self.in_features]
            return sum(level * plane for level, plane in zip(levels, planes, strict=True))
        levels = _decoded(self.get_buffer("plane_terms"))
        dense = sum(level * plane for level, plane in zip(levels, planes, strict=True))
        rows = _decoded(self.get_buffer("row_terms"))
        return dense * _decoded(self._leader[0].get_buffer("column_terms")) * rows[:, None]

    def stored(self) -> bcq.BCQWeight:
        """Return the planes and scales as the packed model has them."""
        arrays = {name: buffer.cpu().numpy() for name, buffer in self._buffers.items()}
        shared = {name: buffer.cpu().numpy() for name, buffer in self._leader[0]._buffers.items()}
        scales: bcq.SeparableScales | bcq.BlockScales
        if "plane_terms" in arrays:
            columns = shared["column_terms"]
            scales = bcq.SeparableScales(arrays["row_terms"], columns, arrays["plane_terms"])
        else:
            scales = bcq.BlockScales(*self._scale_block, arrays["block_terms"])
        rotation = bcq.Rotation(self._block, shared["signs"]) if self._block > 1 else None
        shape = (self.out_features, self.in_features)
        return bcq.BCQWeight(shape, arrays["planes"], scales, rotation)


def _signs(packed: Tensor, inputs: int) -> Tensor:
    """Return float32 (..., inputs) of -1 and +1 from packed planes or signs."""
    places = torch.arange(8, dtype=torch.uint8, device=packed.device)
    flags = (packed[..., None] >> places) & 1
    return flags.flatten(-2)[..., :inputs].float() * 2 - 1


def _decoded(terms: Tensor) -> Tensor:
    """Return the float32 scales (...) of term bytes (..., terms); exact."""
    table = decode_terms(np.arange(256, dtype=np.uint8)[:, None]).astype(np.float64)
    values = torch.from_numpy(table).to(terms.device)[terms.int()]
    return values.sum(-1).float()


class WidenEmbedding(ConversionOps):
    """Turn an 8-bit embedding and the scales of its rows into floats, while they are loaded."""

    def __init__(self, dtype: torch.dtype) -> None:
        """Take the dtype of the model."""
        self._dtype = dtype

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        **rest: object,
    ) -> dict[str, Any]:
        """Return {target: weight} of the two tensors."""
        found = {name: t[0] if isinstance(t, list) else t for name, t in input_dict.items()}
        levels = next(t for t in found.values() if t.ndim == 2)
        scales = next(t for t in found.values() if t.ndim == 1)
        return {target_patterns[0]: (levels.float() * scales[:, None]).to(self._dtype)}


@register_quantization_config(packed_config.QUANT_METHOD)
class ShiftAddConfig(QuantizationConfigMixin):
    """The `quantization_config` of a packed model, as it stands in its config.json."""

    def __init__(self, **fields: Any) -> None:
        """Keep every field under its own name."""
        self.quant_method: Any = packed_config.QUANT_METHOD
        self.__dict__.update(fields)


@register_quantizer(packed_config.QUANT_METHOD)
class ShiftAddQuantizer(HfQuantizer):
    """Puts coded linears in the place of a model's own; only for packed models."""

    requires_calibration = True  # made by `shiftadd-tvm quantize`, never by transformers

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Remember the dtype of the model."""
        self._dtype = dtype
        return dtype

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: Sequence[str], **rest: object
    ) -> Any:
        # the file itself: transformers' config has other keys
        config = Path(checkpoint_files[0]).with_name("config.json")
        _, _, self._layout = packed_config.read_config(config, packed_config.read_json(config))
        with torch.device("meta"):
            # transformers gives a checkpoint's tensors its own names while it loads them
            sparse_experts.separate(model, self._layout.decoder, renamed=True)
            replace_linears(model, self._layout)
        return model

    def get_weight_conversions(self) -> list[WeightConverter]:
        """Return how 8-bit embeddings are loaded; everything else is taken as it is."""
        if self._layout.embedding_bits != 8:
            return []
        return [
            WeightConverter(
                [f"{name}.weight$", f"{name}.weight_scale$"],
                f"{name}.weight",
                [WidenEmbedding(self._dtype)],
            )
            for name in self._layout.embeddings()
        ]

    def _dequantize(self, model: Any, dtype: torch.dtype | None = None) -> Any:
        for name, module in list(model.named_modules()):
            if isinstance(module, PackedLinear):
                model.set_submodule(name, dense_linear(module, dtype or self._dtype))
        return model

    def is_serializable(self) -> bool:
        """Tell that `save_pretrained` must refuse: the packed folder itself is what to copy."""
        return False

    @property
    def is_trainable(self) -> bool:
        """Tell that planes and powers of two are not trained here."""
        return False


def replace_linears(model: Any, layout: Layout) -> None:
    """Put an empty `PackedLinear` in the place of every linear that `layout` codes."""
    shapes = layout.coded_shapes()
    parts = ("planes", "row_terms", "column_terms", "plane_terms", "block_terms", "signs")
    for group in layout.groups():
        leader = None
        for name in group:
            try:
                replaced = model.get_submodule(name)
            except AttributeError:
                raise UnsupportedError(
                    f"transformers' {type(model).__name__} has no linear {name}, which this packed "
                    "model codes by itself; evaluate its artifact instead."
                ) from None
            outputs, inputs = layout.linears()[name]
            buffers = {
                part: shapes[f"{name}.{part}"] for part in parts if f"{name}.{part}" in shapes
            }
            coded = PackedLinear(
                (outputs, inputs),
                buffers,
                layout.rotation_block(inputs),
                layout.block_shape((outputs, inputs)),
                leader,
                getattr(replaced, "bias", None) is not None,
            )
            leader = leader or coded
            model.set_submodule(name, coded)
            # GPT-2 would initialize `c_proj.weight` through its parent; there is nothing to initialize
            model.get_submodule(name.rpartition(".")[0])._is_hf_initialized = True


def dense_linear(coded: PackedLinear, dtype: torch.dtype) -> torch.nn.Linear:
    """Return the ordinary linear of `bcq.dequantize`'s weights."""
    weight = torch.from_numpy(dequantize(coded.stored())).to(
        coded.get_buffer("planes").device, dtype
    )
    linear = torch.nn.Linear(coded.in_features, coded.out_features, coded.bias is not None, "meta")
    linear.weight = torch.nn.Parameter(weight, requires_grad=False)
    linear.bias = coded.bias
    return linear
