"""LLaMA 1, 2, 3, SmolLM2, TinyLlama: pre-norm decoder, grouped queries, RoPE, gated SiLU."""

from shiftadd_tvm.errors import BadFileError, UnsupportedError
from shiftadd_tvm.families import Config, Decoder, InputGroup, Rope, field, token_ids

GROUPS = (
    InputGroup(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    InputGroup(("self_attn.o_proj",)),
    InputGroup(("mlp.gate_proj", "mlp.up_proj")),
    InputGroup(("mlp.down_proj",)),
)


def read_config(config: Config) -> Decoder:
    """Return the decoder; raise `BadFileError` or `UnsupportedError` with the key at fault."""
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        raise UnsupportedError(f"config.json has hidden_act {activation!r}; llama supports 'silu'.")
    heads, hidden = field(config, "num_attention_heads", int), field(config, "hidden_size", int)
    bias = field(config, "attention_bias", bool, False)
    decoder = Decoder(
        layers=field(config, "num_hidden_layers", int),
        hidden=hidden,
        heads=heads,
        kv_heads=field(config, "num_key_value_heads", int, heads),
        head_dim=field(config, "head_dim", int, hidden // max(heads, 1)),
        intermediate=field(config, "intermediate_size", int),
        vocabulary=field(config, "vocab_size", int),
        positions=field(config, "max_position_embeddings", int, 2048),
        norm_epsilon=field(config, "rms_norm_eps", float, 1e-6),
        rope=_rope(config),
        tied_embeddings=field(config, "tie_word_embeddings", bool, False),
        attention_bias=bias,
        output_bias=bias,
        mlp_bias=field(config, "mlp_bias", bool, False),
        bos=token_ids(config, "bos_token_id"),
        eos=token_ids(config, "eos_token_id"),
        groups=GROUPS,
    )
    _check_sizes(decoder)
    return decoder


def _check_sizes(decoder: Decoder) -> None:
    for name in ("layers", "hidden", "heads", "kv_heads", "head_dim", "intermediate", "vocabulary"):
        if getattr(decoder, name) < 1:
            raise BadFileError(f"config.json has a model with {name} = 0, expected at least 1.")
    if decoder.heads % decoder.kv_heads or decoder.head_dim % 2:
        raise BadFileError(
            f"config.json has {decoder.heads} heads, {decoder.kv_heads} key/value heads and head "
            f"size {decoder.head_dim}; expected whole groups of heads and an even head size."
        )


def _rope(config: Config) -> Rope:
    # transformers 5 writes rope_parameters, earlier versions rope_theta and rope_scaling
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(parameters, dict):
        raise BadFileError(f"config.json has rope parameters {parameters!r}, expected an object.")
    theta = field(config, "rope_theta", float, 10000.0)
    theta = field(parameters, "rope_theta", float, theta)
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if kind == "default":
        return Rope(theta)
    if kind == "linear":
        return Rope(theta, kind, field(parameters, "factor", float))
    if kind == "llama3":
        return Rope(
            theta,
            kind,
            field(parameters, "factor", float),
            field(parameters, "low_freq_factor", float),
            field(parameters, "high_freq_factor", float),
            field(parameters, "original_max_position_embeddings", int),
        )
    raise UnsupportedError(
        f"config.json has rope type {kind!r}; llama supports 'default', 'linear' and 'llama3'."
    )


def tiny_config() -> Config:
    """Return a model of a few hundred kilobytes that uses grouped queries and odd sizes."""
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 96,
        "intermediate_size": 200,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 24,
        "vocab_size": 259,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
