"""What the later stages need of a transformer encoder: its input, blocks, heads and names, as data.

A family (`encoder_families/`) reads an `Encoder` out of a config.json, as a decoder family reads a
`Decoder`. Attention looks both ways and there is no cache: an encoder is a function from images or token
ids to hidden states. Names are Hugging Face's, of modules inside a block (`attention.output.dense`) or of
the whole model; an empty name says that there is no such module.
"""

import math
from dataclasses import dataclass

from shiftadd_tvm.decoder_model import Norms, Projection

STATES = "last_hidden_state"  # what the heads read

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Images:
    """pixel_values float32 (batch, channels, height, width), cut into patches that do not overlap."""

    height: int
    width: int
    channels: int
    patch_height: int
    patch_width: int
    projection: str  # module of the convolution that embeds a patch
    tokens: tuple[str, ...]  # learned tensors (1, 1, hidden) in front of the patches
    positions: str  # learned tensor (1, tokens and patches, hidden)
    registers: str = ""  # learned tensor (1, register_count, hidden) behind the tokens, without positions
    register_count: int = 0
    smoothed: bool = False  # positions for another image size are filtered before they are resampled

    @property
    def patches(self) -> tuple[int, int]:
        """The rows and columns of patches."""
        return self.height // self.patch_height, self.width // self.patch_width

    @property
    def placed(self) -> int:
        """The tokens and patches of an image: what has a position."""
        return len(self.tokens) + math.prod(self.patches)

    def __str__(self) -> str:
        """Say what a caller gives."""
        return f"pixel_values, images of {self.height} x {self.width}"

    def tensor_shapes(self, hidden: int) -> Shapes:
        """Return the shape of every tensor that embeds an image."""
        patch = (self.channels, self.patch_height, self.patch_width)
        return {
            **{name: (1, 1, hidden) for name in self.tokens},
            self.positions: (1, self.placed, hidden),
            **({self.registers: (1, self.register_count, hidden)} if self.registers else {}),
            f"{self.projection}.weight": (hidden, *patch),
            f"{self.projection}.bias": (hidden,),
        }


@dataclass(frozen=True)
class Words:
    """input_ids, attention_mask and, with `types`, token_type_ids: int64 (batch, tokens)."""

    vocabulary: int
    rows: int  # of the table of positions
    words: str  # modules of embeddings
    positions: str
    norm: str
    types: str = ""
    kinds: int = 0  # rows of the table of token types
    padding: int | None = None  # positions count tokens that are not this id, from padding + 1 on

    @property
    def limit(self) -> int:
        """The tokens of a text at most."""
        return self.rows if self.padding is None else self.rows - self.padding - 1

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the inputs."""
        return ("input_ids", "attention_mask", *(["token_type_ids"] if self.types else []))

    def __str__(self) -> str:
        """Say what a caller gives."""
        return f"{', '.join(self.names)}, texts of up to {self.limit} tokens"

    def tensor_shapes(self, hidden: int) -> Shapes:
        """Return the shape of every tensor that embeds a text."""
        tables = {self.words: self.vocabulary, self.positions: self.rows}
        tables |= {self.types: self.kinds} if self.types else {}
        found: Shapes = {f"{name}.weight": (rows, hidden) for name, rows in tables.items()}
        return found | _norm_shapes(self.norm, hidden)


@dataclass(frozen=True)
class Normalized:
    """A step of a head: a norm of its own."""

    path: str
    width: int


@dataclass(frozen=True)
class Unembedded:
    """A step of a head: the product with the table of the words, plus a bias that is stored alone."""

    bias: str
    vocabulary: int


Step = Projection | Normalized | Unembedded | str  # a str: an activation function


@dataclass(frozen=True)
class Head:
    """An output beside the hidden states: `steps` one after the other over what it reads."""

    output: str
    steps: tuple[Step, ...] = ()
    of: tuple[str, ...] = (STATES,)  # an output before it; of several, their mean
    rows: str = "first"  # of the hidden states: "first", "second", "all", "first and mean" of patches
    optional: bool = False  # left out where the checkpoint has not got its tensors

    def tensor_shapes(self) -> Shapes:
        """Return the shape of every tensor of its own."""
        found: Shapes = {}
        for step in self.steps:
            if isinstance(step, Projection):
                found[f"{step.path}.weight"] = (step.outputs, step.inputs)
                found[f"{step.path}.bias"] = (step.outputs,)
            elif isinstance(step, Normalized):
                found |= _norm_shapes(step.path, step.width)
            elif isinstance(step, Unembedded):
                found[step.bias] = (step.vocabulary,)
        return found


@dataclass(frozen=True)
class Encoder:
    """A transformer encoder; a block is x + scale · f(norm(x)) for attention and MLP, or normed after."""

    layers: int
    hidden: int
    heads: int
    epsilon: float  # of every norm
    embedded: Images | Words
    attention: tuple[Projection, Projection, Projection]  # query, key, value
    attention_output: Projection
    mlp_input: Projection  # with `gated`: gate and up, one below the other
    mlp_output: Projection
    activation: str  # a name of `ops/activation.py`
    attention_norms: Norms
    mlp_norms: Norms
    outputs: tuple[Head, ...]  # beside the hidden states
    gated: bool = False
    attention_scale: str = ""  # tensors (hidden,) inside a block that scale what a half adds
    mlp_scale: str = ""
    base: str = ""  # checkpoints of the base model alone leave it out
    block: str = "encoder.layer.{index}"
    final_norm: str = ""
    unread: tuple[str, ...] = ()  # how names of tensors begin that only training needs
    aliases: tuple[tuple[str, str], ...] = ()  # module, and how some checkpoints call it

    @property
    def head_dim(self) -> int:
        """The size of an attention head."""
        return self.hidden // self.heads

    def blocks(self) -> list[str]:
        """Return the module path of every block."""
        return [self.block.format(index=index) for index in range(self.layers)]

    def projections(self) -> tuple[Projection, ...]:
        """Return the linears of a block."""
        return (*self.attention, self.attention_output, self.mlp_input, self.mlp_output)

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """Return (outputs, inputs) of every quantized linear by its module path, in model order."""
        found = self.projections()
        return {f"{b}.{p.path}": (p.outputs, p.inputs) for b in self.blocks() for p in found}

    def input_groups(self) -> list[tuple[str, ...]]:
        """Return the module paths of every group of linears that share an input, in order."""
        one = ((self.attention_output,), (self.mlp_input,), (self.mlp_output,))
        groups = (self.attention, *one)
        return [tuple(f"{b}.{p.path}" for p in group) for b in self.blocks() for group in groups]

    def transposed(self) -> set[str]:
        """Return the names of weights that are stored as (inputs, outputs): none."""
        return set()

    def optional(self) -> set[str]:
        """Return the names of tensors that a checkpoint need not have."""
        return {name for head in self.outputs if head.optional for name in head.tensor_shapes()}

    def tensor_shapes(self) -> Shapes:
        """Return the shape of every tensor that a checkpoint holds, by HF name; optional ones too."""
        found = self.embedded.tensor_shapes(self.hidden)
        for block in self.blocks():
            found |= self._block_shapes(f"{block}.")
        if self.final_norm:
            found |= _norm_shapes(self.final_norm, self.hidden)
        for head in self.outputs:
            found |= head.tensor_shapes()
        return found

    def norm_names(self) -> set[str]:
        """Return the module paths of all norms."""
        shapes = self.tensor_shapes()
        names = {name.removesuffix(".weight") for name in shapes if len(shapes[name]) == 1}
        return {name for name in names if f"{name}.weight" in shapes and f"{name}.bias" in shapes}

    def _block_shapes(self, prefix: str) -> Shapes:
        found: Shapes = {}
        for linear in self.projections():
            found[f"{prefix}{linear.path}.weight"] = (linear.outputs, linear.inputs)
            if linear.bias:
                found[f"{prefix}{linear.path}.bias"] = (linear.outputs,)
        for name in (*self.attention_norms.names(), *self.mlp_norms.names()):
            found |= _norm_shapes(prefix + name, self.hidden)
        for name in filter(None, (self.attention_scale, self.mlp_scale)):
            found[prefix + name] = (self.hidden,)
        return found


def _norm_shapes(path: str, width: int) -> Shapes:
    return {f"{path}.weight": (width,), f"{path}.bias": (width,)}
