"""What text encoders share with BERT: names, learned positions, a norm after each half of a block."""

from shiftadd_tvm import config_fields
from shiftadd_tvm.config_fields import Config, expect, field
from shiftadd_tvm.decoder_model import Norms, Projection
from shiftadd_tvm.encoder_families import _parts
from shiftadd_tvm.encoder_model import Encoder, Head, Normalized, Unembedded, Words


def bert_like(
    config: Config, family: str, *, outputs: tuple[Head, ...], padding: int | None = None
) -> Encoder:
    """Return the encoder of a config whose keys are BERT's; `padding` as `Words` has it."""
    expect(config, family, is_decoder=False, add_cross_attention=False)
    expect(config, family, position_embedding_type="absolute")
    path = f"{family}.embeddings."
    words = Words(
        field(config, "vocab_size", int),
        field(config, "max_position_embeddings", int, 512),
        words=f"{path}word_embeddings",
        positions=f"{path}position_embeddings",
        norm=f"{path}LayerNorm",
        types=f"{path}token_type_embeddings",
        kinds=field(config, "type_vocab_size", int, 2),
        padding=padding,
    )
    return _parts.encoder(
        config,
        family,
        "attention.self",
        field(config, "intermediate_size", int),
        epsilon=1e-12,
        embedded=words,
        attention_norms=Norms(after="attention.output.LayerNorm"),
        mlp_norms=Norms(after="output.LayerNorm"),
        outputs=outputs,
        unread=(f"{path}position_ids",),
    )


def pooled(config: Config, family: str) -> Head:
    """Return BERT's pooler, which many checkpoints have."""
    plain = {key: value for key, value in config.items() if key != "pooler_act"}
    return _parts.pooler(plain, f"{family}.pooler.dense", field(config, "hidden_size", int))


def words_of(
    config: Config, family: str, dense: str, norm: str, bias: str, activation: str = "hidden_act"
) -> Head:
    """Return the head of a masked language model, whose matrix is the embedding of the words."""
    expect(config, family, tie_word_embeddings=True)
    hidden = field(config, "dim" if family == "distilbert" else "hidden_size", int)
    function = config_fields.activation(config, activation, family, "gelu")
    steps = (
        Projection(dense, hidden, hidden, True),
        function,
        Normalized(norm, hidden),
        Unembedded(bias, field(config, "vocab_size", int)),
    )
    return Head("logits", steps, rows="all")


def tiny(family: str, name: str, **others: object) -> Config:
    """Return a small random model whose sizes all differ."""
    sizes: Config = {"vocab_size": 131, "max_position_embeddings": 40}
    return _parts.tiny(family, name, **sizes, **others)
