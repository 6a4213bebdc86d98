"""OPT 125M to 66B: learned positions, layer norms, ReLU; the 350M one normalizes after the sums and
has an embedding narrower than its states."""

import dataclasses

from shiftadd_tvm.config_fields import Config, activation, check_sizes, expect, field, token_ids
from shiftadd_tvm.decoder_model import Decoder, Norm, Norms, Projection
from shiftadd_tvm.families import _parts

TITLE = "OPT (125M to 66B, 350M included)"
OFFSET = 2  # rows of the position embedding before that of position 0
EPSILON = 1e-5  # torch's own
BASE = "model.decoder."


def read_config(config: Config) -> Decoder:
    """Return the decoder; raise `BadFileError` or `UnsupportedError` with the key at fault."""
    expect(config, "opt", layer_norm_elementwise_affine=True)
    hidden, heads = field(config, "hidden_size", int), field(config, "num_attention_heads", int)
    bias = field(config, "enable_bias", bool, True)
    before = field(config, "do_layer_norm_before", bool, True)
    bare = not before or field(config, "_remove_final_layer_norm", bool, False)
    width = field(config, "word_embed_proj_dim", int, hidden)
    projected = width != hidden
    size = hidden // max(heads, 1)
    attention = _parts.llama_attention(hidden, heads, heads, size, bias=bias, output_bias=bias)
    output = Projection("self_attn.out_proj", hidden, hidden, bias)
    function = activation(config, "activation_function", "opt", "relu")
    inner = field(config, "ffn_dim", int)
    decoder = Decoder(
        layers=field(config, "num_hidden_layers", int),
        hidden=hidden,
        vocabulary=field(config, "vocab_size", int),
        positions=field(config, "max_position_embeddings", int, 2048),
        attention=dataclasses.replace(attention, output=output),
        mlp=_parts.plain_mlp(hidden, inner, function, "fc1", "fc2", bias=bias),
        norm=Norm("layer", EPSILON, bias=True),
        attention_norms=_norms("self_attn_layer_norm", before),
        mlp_norms=_norms("final_layer_norm", before),
        tied_embeddings=field(config, "tie_word_embeddings", bool, True),
        bos=token_ids(config, "bos_token_id", 2),
        eos=token_ids(config, "eos_token_id", 2),
        block=f"{BASE}layers.{{index}}",
        embedding=f"{BASE}embed_tokens",
        embedding_size=width if projected else 0,
        project_in=f"{BASE}project_in" if projected else "",
        project_out=f"{BASE}project_out" if projected else "",
        position_embedding=f"{BASE}embed_positions",
        position_offset=OFFSET,
        final_norm="" if bare else f"{BASE}final_layer_norm",
    )
    return check_sizes(decoder)


def _norms(name: str, before: bool) -> Norms:
    return Norms(before=name) if before else Norms(after=name)


def tiny_config() -> Config:
    """Return a model like the 350M one, which has what the others have not; heads of an odd size."""
    return {
        "model_type": "opt",
        "architectures": ["OPTForCausalLM"],
        "hidden_size": 84,
        "ffn_dim": 200,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 259,
        "max_position_embeddings": 256,
        "word_embed_proj_dim": 48,
        "do_layer_norm_before": False,
        "activation_function": "relu",
        "bos_token_id": 2,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }
