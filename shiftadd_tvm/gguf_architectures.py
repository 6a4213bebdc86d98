"""GGUF's architectures, as data: what of a file's metadata and names Hugging Face calls how.

    GGUF             Hugging Face     beside the names
    llama            llama            rows of q and k are interleaved
    ... of experts   mixtral          and a block's experts are one tensor (experts, outputs, inputs)
    qwen2, qwen3     qwen2, qwen3     as they are
    gemma            gemma            norms are stored as 1 + w
    gemma2           gemma2           and attention is in a window in every other block
    gemma3           gemma3_text      ... in 5 of 6 blocks

Metadata keys are below the architecture's own name (`llama.block_count`). What a file has beyond what
stands here, adapters or experts of another kind, is refused by its name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from shiftadd_tvm.families import Config

# GGUF's tensors outside of the blocks, whatever the architecture
OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
INNER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
FOUR_NORMS = {  # before and after attention, before and after the feed-forward part
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}

WHOLE = {  # Hugging Face's key -> GGUF's; positive whole numbers that every file has
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
}
ROPE_THETA = 10000.0  # where a file does not say


@dataclass(frozen=True)
class Architecture:
    """How files of one GGUF architecture read; keys of `optional` and `constants` are Hugging Face's."""

    model_type: str
    model_class: str
    constants: Config  # config keys that the architecture fixes
    inner: Mapping[str, str] = field(default_factory=lambda: INNER)  # names inside a block
    stacked: Mapping[str, str] = field(default_factory=dict)  # of all experts; {} is the expert
    head_dim: str = "attention.key_length"  # GGUF's key; absent: hidden / heads
    interleaved: bool = False  # q and k rows: see gguf_checkpoint.gguf_rows
    norm_shift: float = 0.0  # what is stored too much in every norm
    rope_theta: float = ROPE_THETA
    whole: Mapping[str, str] = field(default_factory=dict)  # more of WHOLE
    optional: Mapping[str, tuple[str, float]] = field(default_factory=dict)  # GGUF's key, default
    window_period: int = 0  # every so manyeth block sees everything, the others a window; 0: none
    biased: tuple[str, ...] = ()  # modules whose bias the config has a flag for
    # what follows from the numbers that were read
    derive: Callable[[Config], Config] = lambda config: {}


def _scalar_of(layers: int) -> Callable[[Config], Config]:
    """Return what derives `query_pre_attn_scalar`, which GGUF leaves to the model's size: its largest
    model, of `layers` blocks, has hidden / heads, all others the size of a head."""

    def derive(config: Config) -> Config:
        hidden, heads = int(str(config["hidden_size"])), int(str(config["num_attention_heads"]))
        large = config["num_hidden_layers"] == layers
        return {"query_pre_attn_scalar": hidden // heads if large else config["head_dim"]}

    return derive


ROUTED = {name: path for name, path in INNER.items() if not path.startswith("mlp.")}
ROUTED |= {"ffn_gate_inp": "block_sparse_moe.gate"}
EXPERTS = {
    "ffn_gate_exps": "block_sparse_moe.experts.{}.w1",
    "ffn_down_exps": "block_sparse_moe.experts.{}.w2",
    "ffn_up_exps": "block_sparse_moe.experts.{}.w3",
}

GEMMA = {"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False}

ARCHITECTURES = {
    "llama": Architecture(
        "llama",
        "LlamaForCausalLM",
        {"hidden_act": "silu"},
        head_dim="rope.dimension_count",
        interleaved=True,
        biased=("attention_bias", "mlp_bias"),
    ),
    "qwen2": Architecture(
        "qwen2",
        "Qwen2ForCausalLM",
        {"hidden_act": "silu", "use_sliding_window": False},
    ),
    "qwen3": Architecture(
        "qwen3",
        "Qwen3ForCausalLM",
        {"hidden_act": "silu", "use_sliding_window": False},
        inner=INNER | HEAD_NORMS,
        biased=("attention_bias",),
    ),
    "gemma": Architecture(
        "gemma",
        "GemmaForCausalLM",
        {"hidden_act": "gelu_pytorch_tanh", "attention_bias": False},
        norm_shift=1.0,
    ),
    "gemma2": Architecture(
        "gemma2",
        "Gemma2ForCausalLM",
        GEMMA,
        inner=INNER | FOUR_NORMS,
        norm_shift=1.0,
        whole={"sliding_window": "attention.sliding_window"},
        optional={
            "attn_logit_softcapping": ("attn_logit_softcapping", 50.0),
            "final_logit_softcapping": ("final_logit_softcapping", 30.0),
        },
        window_period=2,
        derive=_scalar_of(46),
    ),
    "gemma3": Architecture(
        "gemma3_text",
        "Gemma3ForCausalLM",
        GEMMA,
        inner=INNER | HEAD_NORMS | FOUR_NORMS,
        norm_shift=1.0,
        rope_theta=1_000_000.0,
        whole={"sliding_window": "attention.sliding_window"},
        optional={"rope_local_base_freq": ("rope.freq_base_swa", 10000.0)},
        window_period=6,
        derive=_scalar_of(62),
    ),
}

# what files of an architecture are that have experts: a positive expert_count
WITH_EXPERTS = {
    "llama": Architecture(
        "mixtral",
        "MixtralForCausalLM",
        {"hidden_act": "silu", "sliding_window": None},
        inner=ROUTED,
        stacked=EXPERTS,
        head_dim="rope.dimension_count",
        interleaved=True,
        whole={"num_local_experts": "expert_count", "num_experts_per_tok": "expert_used_count"},
    ),
}
