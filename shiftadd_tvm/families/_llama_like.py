"""What most of today's families share with LLaMA: its names, grouped queries, RoPE, a gated MLP.

A family takes this decoder and replaces what it does differently.
"""

from shiftadd_tvm import config_fields
from shiftadd_tvm.config_fields import Config, field, token_ids
from shiftadd_tvm.decoder_model import Decoder, Norm
from shiftadd_tvm.families import _parts


def llama_like(
    config: Config,
    family: str,
    *,
    bias: bool = False,
    output_bias: bool = False,
    mlp_bias: bool = False,
    activation: tuple[str, str] = ("hidden_act", "silu"),
    head_dim: int | None = None,
    positions: int = 2048,
    epsilon: float = 1e-6,
    tied: bool = False,
    theta: float = 10000.0,
) -> Decoder:
    """Return the decoder of a config whose keys are LLaMA's; `bias` is of q, k and v, `activation`
    a key and its default, what follows the defaults of the family."""
    hidden, layers = field(config, "hidden_size", int), field(config, "num_hidden_layers", int)
    heads = field(config, "num_attention_heads", int)
    size = field(config, "head_dim", int, hidden // max(heads, 1) if head_dim is None else head_dim)
    kv_heads = field(config, "num_key_value_heads", int, heads)
    function = config_fields.activation(config, activation[0], family, activation[1])
    return config_fields.check_sizes(
        Decoder(
            layers=layers,
            hidden=hidden,
            vocabulary=field(config, "vocab_size", int),
            positions=field(config, "max_position_embeddings", int, positions),
            attention=_parts.llama_attention(
                hidden, heads, kv_heads, size, bias=bias, output_bias=output_bias
            ),
            mlp=_parts.llama_mlp(
                hidden, field(config, "intermediate_size", int), function, bias=mlp_bias
            ),
            norm=Norm("rms", field(config, "rms_norm_eps", float, epsilon)),
            attention_norms=_parts.LLAMA_ATTENTION,
            mlp_norms=_parts.LLAMA_MLP,
            ropes=(config_fields.rope(config, family, theta),) * layers,
            tied_embeddings=field(config, "tie_word_embeddings", bool, tied),
            bos=token_ids(config, "bos_token_id"),
            eos=token_ids(config, "eos_token_id"),
        )
    )


def tiny(model_type: str, architecture: str, **keys: object) -> Config:
    """Return a config of a few hundred kilobytes that uses grouped queries and odd sizes; `keys` are
    its own, None takes one away."""
    config = {
        "model_type": model_type,
        "architectures": [architecture],
        "hidden_size": 96,
        "intermediate_size": 200,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 24,
        "vocab_size": 259,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **keys,
    }
    return {key: value for key, value in config.items() if value is not None}
