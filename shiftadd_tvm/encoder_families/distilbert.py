"""DistilBERT: BERT without token types and pooler, under names of its own."""

import dataclasses

from shiftadd_tvm.config_fields import Config, activation, field
from shiftadd_tvm.decoder_model import Norms, Projection
from shiftadd_tvm.encoder_families import _parts
from shiftadd_tvm.encoder_families._bert_like import bert_like, words_of
from shiftadd_tvm.encoder_model import Encoder, Head, Words

TITLE = "DistilBERT"
ARCHITECTURES = (
    "DistilBertModel",
    "DistilBertForMaskedLM",
    "DistilBertForSequenceClassification",
    "DistilBertForTokenClassification",
)
FAMILY = "distilbert"
KEYS = {
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "hidden_act": "activation",
}  # BERT's -> its own


def read_config(config: Config) -> Encoder:
    """Return the encoder; raise `BadFileError` or `UnsupportedError` with the key at fault."""
    name = _parts.architecture(config, FAMILY, ARCHITECTURES)
    hidden, inner = field(config, "dim", int), field(config, "hidden_dim", int)
    function = activation(config, "activation", FAMILY, "gelu")
    linear = Projection("classifier", _parts.labels(config), hidden, True)
    outputs: tuple[Head, ...] = ()
    if name == "DistilBertForMaskedLM":
        names = ("vocab_transform", "vocab_layer_norm", "vocab_projector.bias")
        outputs = (words_of(config, FAMILY, *names, activation="activation"),)
    elif name == "DistilBertForSequenceClassification":
        dense = Projection("pre_classifier", hidden, hidden, True)
        outputs = (Head("logits", (dense, "relu", linear)),)
    elif name == "DistilBertForTokenClassification":
        outputs = (Head("logits", (linear,), rows="all"),)
    named = {key: config.get(own) for key, own in KEYS.items()}
    found = bert_like({**config, **named, "layer_norm_eps": 1e-12}, FAMILY, outputs=outputs)
    parts = [Projection(f"attention.{p}_lin", hidden, hidden, True) for p in "qkv"]
    assert isinstance(found.embedded, Words)
    return dataclasses.replace(
        found,
        activation=function,
        embedded=dataclasses.replace(found.embedded, types="", kinds=0),
        attention=(parts[0], parts[1], parts[2]),
        attention_output=Projection("attention.out_lin", hidden, hidden, True),
        mlp_input=Projection("ffn.lin1", inner, hidden, True),
        mlp_output=Projection("ffn.lin2", hidden, inner, True),
        attention_norms=Norms(after="sa_layer_norm"),
        mlp_norms=Norms(after="output_layer_norm"),
        block=f"{FAMILY}.transformer.layer.{{index}}",
        unread=(*found.unread, "vocab_projector.weight"),
    )


def tiny_config() -> Config:
    """Return a model with a classifier of two linears."""
    return {
        "model_type": FAMILY,
        "architectures": ["DistilBertForSequenceClassification"],
        "dim": 48,
        "n_layers": 2,
        "n_heads": 3,
        "hidden_dim": 80,
        "vocab_size": 131,
        "max_position_embeddings": 40,
        "id2label": {str(label): f"kind {label}" for label in range(5)},
        "label2id": {f"kind {label}": label for label in range(5)},
    }
