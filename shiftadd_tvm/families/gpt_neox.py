"""GPT-NeoX 20B, Pythia, StableLM's first: attention and MLP side by side, heads turned in part."""

import dataclasses

from shiftadd_tvm import config_fields
from shiftadd_tvm.config_fields import Config, field, object_of, token_ids, turned_dims
from shiftadd_tvm.decoder_model import Decoder, Norm, Norms, Rope
from shiftadd_tvm.families import _parts

TITLE = "GPT-NeoX 20B, Pythia"
FAMILY = "gpt_neox"
BASE = "gpt_neox."


def read_config(config: Config) -> Decoder:
    """Return the decoder; raise `BadFileError` or `UnsupportedError` with the key at fault."""
    hidden, heads = field(config, "hidden_size", int), field(config, "num_attention_heads", int)
    size, layers = hidden // max(heads, 1), field(config, "num_hidden_layers", int)
    function = config_fields.activation(config, "hidden_act", FAMILY, "gelu")
    attention = _parts.fused_attention(
        hidden,
        heads,
        size,
        "attention.query_key_value",
        "attention.dense",
        interleaved=True,
        bias=field(config, "attention_bias", bool, True),
    )
    inner = field(config, "intermediate_size", int)
    return config_fields.check_sizes(
        Decoder(
            layers=layers,
            hidden=hidden,
            vocabulary=field(config, "vocab_size", int),
            positions=field(config, "max_position_embeddings", int, 2048),
            attention=attention,
            mlp=_parts.plain_mlp(hidden, inner, function, "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
            norm=Norm("layer", field(config, "layer_norm_eps", float, 1e-5), bias=True),
            attention_norms=Norms(before="input_layernorm"),
            mlp_norms=Norms(before="post_attention_layernorm"),
            parallel=field(config, "use_parallel_residual", bool, True),
            ropes=(_rope(config, size),) * layers,
            tied_embeddings=field(config, "tie_word_embeddings", bool, False),
            bos=token_ids(config, "bos_token_id", 0),
            eos=token_ids(config, "eos_token_id", 2),
            base=BASE,
            aliases=(("embed_out", "lm_head"),),
            block=f"{BASE}layers.{{index}}",
            embedding=f"{BASE}embed_in",
            final_norm=f"{BASE}final_layer_norm",
            head="embed_out",
        )
    )


def _rope(config: Config, size: int) -> Rope:
    """Return the rotary embedding; earlier versions wrote rotary_pct and rotary_emb_base."""
    share = field(config, "rotary_pct", float, 0.25)
    parameters = object_of(config.get("rope_parameters"))
    dims = turned_dims(parameters, "partial_rotary_factor", size, share)
    found = config_fields.rope(config, FAMILY, field(config, "rotary_emb_base", float, 10000.0))
    return dataclasses.replace(found, dims=dims)


def tiny_config() -> Config:
    """Return a model of which a third of every head turns."""
    return {
        "model_type": FAMILY,
        "architectures": ["GPTNeoXForCausalLM"],
        "hidden_size": 96,
        "intermediate_size": 200,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 259,
        "max_position_embeddings": 256,
        "hidden_act": "gelu",
        "rotary_pct": 0.34,
        "use_parallel_residual": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
