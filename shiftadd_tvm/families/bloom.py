"""Bloom and BloomZ: ALiBi in the place of positions, a norm of the embedding, q, k and v in one."""

from shiftadd_tvm.config_fields import Config, check_sizes, either, expect, field, token_ids
from shiftadd_tvm.decoder_model import Decoder, Norm, Norms
from shiftadd_tvm.families import _parts

TITLE = "Bloom, BloomZ (560M to 176B)"
BASE = "transformer."


def read_config(config: Config) -> Decoder:
    """Return the decoder; raise `BadFileError` or `UnsupportedError` with the key at fault."""
    expect(config, "bloom", apply_residual_connection_post_layernorm=False, slow_but_exact=False)
    hidden = either(config, "hidden_size", "n_embed")
    heads = either(config, "n_head", "num_attention_heads")
    attention = _parts.fused_attention(
        hidden,
        heads,
        hidden // max(heads, 1),
        "self_attention.query_key_value",
        "self_attention.dense",
        interleaved=True,
        bias=True,
        alibi=True,
    )
    return check_sizes(
        Decoder(
            layers=either(config, "n_layer", "num_hidden_layers"),
            hidden=hidden,
            vocabulary=field(config, "vocab_size", int),
            positions=field(config, "seq_length", int, 2048),
            attention=attention,
            mlp=_parts.plain_mlp(
                hidden, 4 * hidden, "gelu_tanh", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"
            ),
            norm=Norm("layer", field(config, "layer_norm_epsilon", float, 1e-5), bias=True),
            attention_norms=Norms(before="input_layernorm"),
            mlp_norms=Norms(before="post_attention_layernorm"),
            tied_embeddings=field(config, "tie_word_embeddings", bool, True),
            bos=token_ids(config, "bos_token_id", 1),
            eos=token_ids(config, "eos_token_id", 2),
            base=BASE,
            block=f"{BASE}h.{{index}}",
            embedding=f"{BASE}word_embeddings",
            embedding_norm=f"{BASE}word_embeddings_layernorm",
            final_norm=f"{BASE}ln_f",
            block_tuple=True,
        )
    )


def tiny_config() -> Config:
    """Return a model whose number of heads is no power of two."""
    return {
        "model_type": "bloom",
        "architectures": ["BloomForCausalLM"],
        "hidden_size": 72,
        "n_layer": 2,
        "n_head": 6,
        "vocab_size": 259,
        "seq_length": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
