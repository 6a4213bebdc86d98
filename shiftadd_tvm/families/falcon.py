"""Falcon 7B, 40B, 180B and Falcon 2: attention and MLP side by side, one or few key heads among the
query heads; those with ALiBi (the RW ones) are not supported: they scale it by the head's size."""

import dataclasses
import math

from shiftadd_tvm import config_fields
from shiftadd_tvm.config_fields import Config, expect, field, token_ids
from shiftadd_tvm.decoder_model import Attention, Decoder, HeadColumns, Norm, Norms, Projection
from shiftadd_tvm.families import _parts

TITLE = "Falcon (7B, 40B, 180B; not RW)"
FAMILY = "falcon"
BASE = "transformer."


def read_config(config: Config) -> Decoder:
    """Return the decoder; raise `BadFileError` or `UnsupportedError` with the key at fault."""
    expect(config, FAMILY, alibi=False)
    hidden, layers = field(config, "hidden_size", int), field(config, "num_hidden_layers", int)
    bias, new = (field(config, k, bool, False) for k in ("bias", "new_decoder_architecture"))
    parallel = new or field(config, "parallel_attn", bool, True)
    inner = field(config, "ffn_hidden_size", int, 4 * hidden)
    function = config_fields.activation(config, "activation", FAMILY, "gelu")
    first, second = _norms(config, new, parallel)
    return config_fields.check_sizes(
        Decoder(
            layers=layers,
            hidden=hidden,
            vocabulary=field(config, "vocab_size", int),
            positions=field(config, "max_position_embeddings", int, 2048),
            attention=_attention(config, hidden, new, bias),
            mlp=_parts.plain_mlp(
                hidden, inner, function, "mlp.dense_h_to_4h", "mlp.dense_4h_to_h", bias=bias
            ),
            norm=Norm("layer", field(config, "layer_norm_epsilon", float, 1e-5), bias=True),
            attention_norms=Norms(before=first),
            mlp_norms=Norms(before=second),
            parallel=parallel,
            ropes=(config_fields.rope(config, FAMILY),) * layers,
            tied_embeddings=field(config, "tie_word_embeddings", bool, True),
            bos=token_ids(config, "bos_token_id", 11),
            eos=token_ids(config, "eos_token_id", 11),
            base=BASE,
            block=f"{BASE}h.{{index}}",
            embedding=f"{BASE}word_embeddings",
            final_norm=f"{BASE}ln_f",
            block_tuple=True,
        )
    )


def _norms(config: Config, new: bool, parallel: bool) -> tuple[str, str]:
    """Return the norms before attention and before the MLP."""
    if new and field(config, "num_ln_in_parallel_attn", int, 2) == 2:
        return "ln_attn", "ln_mlp"
    return "input_layernorm", "input_layernorm" if parallel else "post_attention_layernorm"


def _attention(config: Config, hidden: int, new: bool, bias: bool) -> Attention:
    heads = field(config, "num_attention_heads", int)
    size, fused, output = hidden // max(heads, 1), "query_key_value", "dense"
    names = (f"self_attention.{fused}", f"self_attention.{output}")
    found = _parts.fused_attention(hidden, heads, size, *names, interleaved=True, bias=bias)
    if new:  # each key and value head after the query heads that it serves
        kv_heads = max(field(config, "num_kv_heads", int, heads), 1)
        group = heads // kv_heads
        stride, starts = (group + 2) * size, (0, group * size, (group + 1) * size)
        runs = (group, 1, 1)
    elif field(config, "multi_query", bool, True):  # one of each after all query heads
        kv_heads, stride, runs = 1, (heads + 2) * size, (heads, 1, 1)
        starts = (0, heads * size, (heads + 1) * size)
    else:
        return found
    places = [HeadColumns(0, at, run, stride) for at, run in zip(starts, runs, strict=True)]
    projection = Projection(names[0], (heads + 2 * kv_heads) * size, hidden, bias)
    return dataclasses.replace(
        found,
        kv_heads=kv_heads,
        inputs=(projection,),
        query=places[0],
        key=places[1],
        value=places[2],
        scale=1.0 / math.sqrt(max(size, 1)),
    )


def tiny_config() -> Config:
    """Return a model like the 40B one: two key heads among six query heads."""
    return {
        "model_type": FAMILY,
        "architectures": ["FalconForCausalLM"],
        "hidden_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_kv_heads": 2,
        "new_decoder_architecture": True,
        "vocab_size": 259,
        "max_position_embeddings": 256,
        "bias": False,
        "alibi": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
