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
    base, hidden = f"{family}.", field(config, "hidden_size", int)
    inner, path = field(config, "intermediate_size", int), f"{base}embeddings."
    parts = [Projection(f"attention.self.{p}", hidden, hidden, True) for p in PARTS]
    return _parts.checked(
        Encoder(
            layers=field(config, "num_hidden_layers", int),
            hidden=hidden,
            heads=field(config, "num_attention_heads", int),
            epsilon=field(config, "layer_norm_eps", float, 1e-12),
            embedded=Words(
                field(config, "vocab_size", int),
                field(config, "max_position_embeddings", int, 512),
                words=f"{path}word_embeddings",
                positions=f"{path}position_embeddings",
                norm=f"{path}LayerNorm",
                types=f"{path}token_type_embeddings",
                kinds=field(config, "type_vocab_size", int, 2),
                padding=padding,
            ),
            attention=(parts[0], parts[1], parts[2]),
            attention_output=Projection("attention.output.dense", hidden, hidden, True),
            mlp_input=Projection("intermediate.dense", inner, hidden, True),
            mlp_output=Projection("output.dense", hidden, inner, True),
            activation=config_fields.activation(config, "hidden_act", family, "gelu"),
            attention_norms=Norms(after="attention.output.LayerNorm"),
            mlp_norms=Norms(after="output.LayerNorm"),
            outputs=outputs,
            base=base,
            block=f"{base}encoder.layer.{{index}}",
            unread=(f"{path}position_ids",),
        )
    )


PARTS = ("query", "key", "value")


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
    return {
        "model_type": family,
        "architectures": [name],
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 80,
        "vocab_size": 131,
        "max_position_embeddings": 40,
        "id2label": {str(label): f"kind {label}" for label in range(5)},
        "label2id": {f"kind {label}": label for label in range(5)},
        **others,
    }
