"""Parts of blocks that several families have: separate and fused projections, LLaMA's own names."""

import math

from shiftadd_tvm.decoder_model import Attention, HeadColumns, Mlp, Norms, Projection

LLAMA_ATTENTION = Norms(before="input_layernorm")
LLAMA_MLP = Norms(before="post_attention_layernorm")


def whole_heads(source: int, start: int, heads: int, head_dim: int) -> HeadColumns:
    """Return the columns of heads that lie side by side."""
    return HeadColumns(source, start, heads, heads * head_dim)


def llama_attention(
    hidden: int, heads: int, kv_heads: int, head_dim: int, *, bias: bool, output_bias: bool
) -> Attention:
    """Return attention by self_attn.q_proj, k_proj, v_proj and o_proj."""
    sizes = {"q": heads * head_dim, "k": kv_heads * head_dim, "v": kv_heads * head_dim}
    return Attention(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        inputs=tuple(
            Projection(f"self_attn.{name}_proj", size, hidden, bias) for name, size in sizes.items()
        ),
        output=Projection("self_attn.o_proj", hidden, heads * head_dim, output_bias),
        query=whole_heads(0, 0, heads, head_dim),
        key=whole_heads(1, 0, kv_heads, head_dim),
        value=whole_heads(2, 0, kv_heads, head_dim),
        scale=1.0 / math.sqrt(max(head_dim, 1)),
    )


def llama_mlp(
    hidden: int, intermediate: int, activation: str, *, bias: bool = False, path: str = "mlp"
) -> Mlp:
    """Return the gated MLP of gate_proj, up_proj and down_proj."""
    return Mlp(
        intermediate=intermediate,
        inputs=(
            Projection(f"{path}.gate_proj", intermediate, hidden, bias),
            Projection(f"{path}.up_proj", intermediate, hidden, bias),
        ),
        output=Projection(f"{path}.down_proj", hidden, intermediate, bias),
        activation=activation,
        gated=True,
    )


def plain_mlp(
    hidden: int, intermediate: int, activation: str, up: str, down: str, *, bias: bool = True
) -> Mlp:
    """Return the MLP of two projections with an activation between them."""
    return Mlp(
        intermediate=intermediate,
        inputs=(Projection(up, intermediate, hidden, bias),),
        output=Projection(down, hidden, intermediate, bias),
        activation=activation,
        gated=False,
    )


def fused_attention(
    hidden: int,
    heads: int,
    head_dim: int,
    fused: str,
    output: str,
    *,
    interleaved: bool,
    bias: bool,
    alibi: bool = False,
) -> Attention:
    """Return attention whose q, k and v are one projection: by head (`interleaved`), or each whole."""
    size = heads * head_dim
    step, run, stride = (head_dim, 1, 3 * head_dim) if interleaved else (size, heads, size)
    return Attention(
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim,
        inputs=(Projection(fused, 3 * size, hidden, bias),),
        output=Projection(output, hidden, size, bias),
        query=HeadColumns(0, 0, run, stride),
        key=HeadColumns(0, step, run, stride),
        value=HeadColumns(0, 2 * step, run, stride),
        scale=1.0 / math.sqrt(max(head_dim, 1)),
        alibi=alibi,
    )
