"""GPT-2 and its distilled and translated kin: learned positions, one projection for q, k and v."""

import dataclasses

from shiftadd_tvm.config_fields import Config, activation, check_sizes, expect, field, token_ids
from shiftadd_tvm.decoder_model import Decoder, Mlp, Norm, Norms, Projection
from shiftadd_tvm.families import _parts

TITLE = "GPT-2 (small to XL), DistilGPT-2"
BASE = "transformer."


def read_config(config: Config) -> Decoder:
    """Return the decoder; raise `BadFileError` or `UnsupportedError` with the key at fault."""
    expect(
        config,
        "gpt2",
        scale_attn_weights=True,
        scale_attn_by_inverse_layer_idx=False,
        add_cross_attention=False,
    )
    hidden, heads = field(config, "n_embd", int), field(config, "n_head", int)
    function = activation(config, "activation_function", "gpt2", "gelu_new")
    attention = _parts.fused_attention(
        hidden,
        heads,
        hidden // max(heads, 1),
        "attn.c_attn",
        "attn.c_proj",
        interleaved=False,
        bias=True,
    )
    inner = field(config, "n_inner", int, 4 * hidden)
    mlp = _parts.plain_mlp(hidden, inner, function, "mlp.c_fc", "mlp.c_proj")
    return check_sizes(
        Decoder(
            layers=field(config, "n_layer", int),
            hidden=hidden,
            vocabulary=field(config, "vocab_size", int),
            positions=field(config, "n_positions", int, 1024),
            attention=dataclasses.replace(
                attention,
                inputs=_transposed(attention.inputs),
                output=_transposed((attention.output,))[0],
            ),
            mlp=_transposed_mlp(mlp),
            norm=Norm("layer", field(config, "layer_norm_epsilon", float, 1e-5), bias=True),
            attention_norms=Norms(before="ln_1"),
            mlp_norms=Norms(before="ln_2"),
            tied_embeddings=field(config, "tie_word_embeddings", bool, True),
            bos=token_ids(config, "bos_token_id"),
            eos=token_ids(config, "eos_token_id"),
            base=BASE,
            block=f"{BASE}h.{{index}}",
            embedding=f"{BASE}wte",
            position_embedding=f"{BASE}wpe",
            final_norm=f"{BASE}ln_f",
        )
    )


def _transposed(linears: tuple[Projection, ...]) -> tuple[Projection, ...]:
    return tuple(dataclasses.replace(linear, transposed=True) for linear in linears)


def _transposed_mlp(mlp: Mlp) -> Mlp:
    inputs, (output,) = _transposed(mlp.inputs), _transposed((mlp.output,))
    return dataclasses.replace(mlp, inputs=inputs, output=output)


def tiny_config() -> Config:
    """Return a model whose heads have an odd size."""
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_embd": 84,
        "n_layer": 2,
        "n_head": 4,
        "n_inner": 200,
        "vocab_size": 259,
        "n_positions": 256,
        "activation_function": "gelu_new",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
