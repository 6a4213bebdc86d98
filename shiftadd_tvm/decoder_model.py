"""What the later stages need to know of a decoder-only transformer: its parts, sizes and names, as data.

A family (`families/`) reads a `Decoder` out of a config.json; the torch room runs and quantizes by it,
the TVM room builds the graph by it, so it imports neither. Names are Hugging Face's, of modules inside
a block (`self_attn.q_proj`) or of the whole model (`model.norm`); an empty name says that there is no
such module.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Rope:
    """Rotary embedding: theta, which dimensions of a head turn, and what stretches wavelengths."""

    theta: float
    kind: str = "default"  # or "linear", "llama3", "factors"
    factor: float = 1.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_positions: int = 0
    dims: int = 0  # the first of a head that turn; 0: all
    factors: tuple[float, ...] = ()  # of "factors": what each wavelength is stretched by
    scale: float = 1.0  # of cosines and sines


@dataclass(frozen=True)
class Projection:
    """A linear inside a block; `transposed`: checkpoints store its weight as (inputs, outputs)."""

    path: str
    outputs: int
    inputs: int
    bias: bool = False
    transposed: bool = False


@dataclass(frozen=True)
class HeadColumns:
    """Where heads of D numbers lie in the outputs of a projection: head h begins at column
    start + h // run * stride + h % run * D."""

    source: int  # which of the attention's input projections
    start: int
    run: int
    stride: int


@dataclass(frozen=True)
class Attention:
    """Causal grouped-query attention."""

    heads: int
    kv_heads: int
    head_dim: int
    inputs: tuple[Projection, ...]
    output: Projection
    query: HeadColumns
    key: HeadColumns
    value: HeadColumns
    scale: float  # of q · k
    query_norm: str = ""  # RMS norm of each head, or of all heads together
    key_norm: str = ""
    whole_norm: bool = False
    cap: float = 0.0  # scores become cap · tanh(score / cap); 0: as they are
    alibi: bool = False  # scores fall linearly with the distance, by a slope of each head


@dataclass(frozen=True)
class Mlp:
    """act(up(x)), or act(gate(x)) · up(x), then `output`; gate and up may be one projection."""

    intermediate: int
    inputs: tuple[Projection, ...]
    output: Projection
    activation: str  # a name of `ops/activation.py`
    gated: bool

    def inside(self, module: str) -> "Mlp":
        """Return the same MLP with its linears inside of `module`."""
        moved = lambda linear: replace(linear, path=f"{module}.{linear.path}")
        return replace(self, inputs=tuple(map(moved, self.inputs)), output=moved(self.output))


@dataclass(frozen=True)
class Experts:
    """Several MLPs in the place of one: a token goes through the `chosen` with the largest scores of
    the router, and its outputs are weighed by the softmax of these scores."""

    count: int
    chosen: int
    module: str  # of a block, as checkpoints name it; expert e is its `experts.<e>`
    replaces: str  # the module in its place in transformers' model, which fuses all experts
    router: str = "gate"  # inside of it: (count, hidden), never quantized

    def path(self, expert: int) -> str:
        """Return the module of an expert inside a block."""
        return f"{self.module}.experts.{expert}"


@dataclass(frozen=True)
class Norm:
    """How a model normalizes: "rms" or "layer"; gains are `offset` + what is stored."""

    kind: str
    epsilon: float
    bias: bool = False
    offset: float = 0.0


@dataclass(frozen=True)
class Norms:
    """The norms of half a block, y = after(x + branch(f(before(x))))."""

    before: str = ""
    branch: str = ""
    after: str = ""

    def names(self) -> list[str]:
        """Return the modules that there are."""
        return [name for name in (self.before, self.branch, self.after) if name]


@dataclass(frozen=True)
class Decoder:
    """A decoder-only transformer."""

    layers: int
    hidden: int
    vocabulary: int
    positions: int
    attention: Attention
    mlp: Mlp  # of experts: their paths begin inside of an expert
    norm: Norm
    attention_norms: Norms
    mlp_norms: Norms
    tied_embeddings: bool
    bos: tuple[int, ...]
    eos: tuple[int, ...]
    experts: Experts | None = None
    parallel: bool = False  # attention and MLP read the same x, and both are added to it
    ropes: tuple[Rope | None, ...] = ()  # of each layer; none: no rotary embedding anywhere
    windows: tuple[int, ...] = ()  # positions that each layer sees; 0: all; empty: all see all
    base: str = "model."  # checkpoints of the base model alone leave it out
    aliases: tuple[tuple[str, str], ...] = ()  # module, and how some checkpoints call it
    block: str = "model.layers.{index}"
    embedding: str = "model.embed_tokens"
    embedding_size: int = 0  # its columns where they are not `hidden`
    embedding_scale: float = 1.0
    embedding_norm: str = ""
    project_in: str = ""  # (hidden, embedding_size)
    project_out: str = ""  # (embedding_size, hidden)
    position_embedding: str = ""  # learned
    position_offset: int = 0  # its row of position 0
    final_norm: str = "model.norm"
    head: str = "lm_head"
    block_tuple: bool = False  # transformers' block returns its states in a tuple
    logit_cap: float = 0.0  # logits become cap · tanh(logit / cap); 0: as they are

    @property
    def heads(self) -> int:
        """The number of query heads."""
        return self.attention.heads

    @property
    def kv_heads(self) -> int:
        """The number of key and value heads."""
        return self.attention.kv_heads

    @property
    def head_dim(self) -> int:
        """The size of a head."""
        return self.attention.head_dim

    @property
    def intermediate(self) -> int:
        """The width inside the MLP."""
        return self.mlp.intermediate

    @property
    def width(self) -> int:
        """The columns of embedding and head."""
        return self.embedding_size or self.hidden

    def rope(self, layer: int) -> Rope | None:
        """Return the rotary embedding of a layer."""
        return self.ropes[layer] if self.ropes else None

    def window(self, layer: int) -> int:
        """Return how many positions a layer sees, 0 for all."""
        return self.windows[layer] if self.windows else 0

    @functools.cached_property
    def mlps(self) -> tuple[Mlp, ...]:
        """The MLP of a block, or that of each of its experts."""
        if self.experts is None:
            return (self.mlp,)
        return tuple(self.mlp.inside(self.experts.path(e)) for e in range(self.experts.count))

    @functools.cached_property
    def groups(self) -> tuple[tuple[Projection, ...], ...]:
        """The linears of a block that read one activation, group by group in order."""
        attention = self.attention
        branches = [group for mlp in self.mlps for group in (mlp.inputs, (mlp.output,))]
        return (attention.inputs, (attention.output,), *branches)

    def projections(self) -> dict[str, Projection]:
        """Return the linears of a block by their paths inside it, in model order."""
        return {linear.path: linear for group in self.groups for linear in group}

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """Return (outputs, inputs) of each linear of a block by its path inside the block."""
        return {path: (p.outputs, p.inputs) for path, p in self.projections().items()}

    def blocks(self) -> list[str]:
        """Return the module path of every block."""
        return [self.block.format(index=index) for index in range(self.layers)]

    def input_groups(self) -> list[tuple[str, ...]]:
        """Return the full module paths of every group of linears that share an input, in order."""
        return [group for block in self.blocks() for group in self.groups_of(block)]

    def groups_of(self, block: str) -> list[tuple[str, ...]]:
        """Return those of the groups that lie in a block."""
        return [tuple(f"{block}.{linear.path}" for linear in group) for group in self.groups]

    def transposed(self) -> set[str]:
        """Return the names of the weights that checkpoints store as (inputs, outputs)."""
        stored = [path for path, linear in self.projections().items() if linear.transposed]
        return {f"{block}.{path}.weight" for block in self.blocks() for path in stored}

    def dense(self) -> dict[str, tuple[int, int]]:
        """Return (outputs, inputs) of the matrices beside embedding and head that stay dense."""
        narrow, wide = self.width, self.hidden
        found = {self.project_in: (wide, narrow), self.project_out: (narrow, wide)}
        return (found if self.project_in else {}) | {
            router: (self.experts.count, wide) for router in self.routers() if self.experts
        }

    def routers(self) -> list[str]:
        """Return the module path of every block's router."""
        experts = self.experts
        return [f"{b}.{experts.module}.{experts.router}" for b in self.blocks()] if experts else []

    def _block_norms(self) -> dict[str, int]:
        """Return the width of every norm of a block by its path inside the block."""
        attention, both = self.attention, (*self.attention_norms.names(), *self.mlp_norms.names())
        found = dict.fromkeys(both, self.hidden)
        sizes = ((attention.query_norm, attention.heads), (attention.key_norm, attention.kv_heads))
        for name, heads in sizes:
            if name:
                found[name] = attention.head_dim * (heads if attention.whole_norm else 1)
        return found

    def norm_names(self) -> dict[str, int]:
        """Return the width of every norm by its module path."""
        outer = [name for name in (self.embedding_norm, self.final_norm) if name]
        found, inner = dict.fromkeys(outer, self.hidden), self._block_norms()
        return found | {f"{b}.{name}": size for b in self.blocks() for name, size in inner.items()}

    def norm_widths(self) -> list[int]:
        """Return over how many numbers each norm goes that a token passes; heads count one by one."""
        kind, outer = (
            self.attention,
            [name for name in (self.embedding_norm, self.final_norm) if name],
        )
        heads = {kind.query_norm: kind.heads, kind.key_norm: kind.kv_heads}
        times = lambda name: 1 if kind.whole_norm else heads.get(name, 1)
        block = [size for name, size in self._block_norms().items() for _ in range(times(name))]
        return [self.hidden] * len(outer) + block * self.layers

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor that a checkpoint of this model holds, by HF name; those
        of linears as (outputs, inputs) whatever the checkpoint stores."""
        blocks = tuple(f"{block}." for block in self.blocks())
        norms = [item for item in self.norm_names().items() if not item[0].startswith(blocks)]
        shapes: dict[str, tuple[int, ...]] = {
            f"{self.embedding}.weight": (self.vocabulary, self.width)
        }
        if self.position_embedding:
            rows = self.positions + self.position_offset
            shapes[f"{self.position_embedding}.weight"] = (rows, self.hidden)
        shapes |= self._norm_shapes(norms)
        if not self.tied_embeddings:
            shapes[f"{self.head}.weight"] = (self.vocabulary, self.width)
        shapes |= {f"{name}.weight": shape for name, shape in self.dense().items()}
        for block in blocks:
            inner = [(block + name, size) for name, size in self._block_norms().items()]
            shapes |= self._norm_shapes(inner)
            for path, linear in self.projections().items():
                shapes[f"{block}{path}.weight"] = (linear.outputs, linear.inputs)
                if linear.bias:
                    shapes[f"{block}{path}.bias"] = (linear.outputs,)
        return shapes

    def _norm_shapes(self, norms: Iterable[tuple[str, int]]) -> dict[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {}
        for name, size in norms:
            found[f"{name}.weight"] = (size,)
            if self.norm.bias:
                found[f"{name}.bias"] = (size,)
        return found
