"""BERT: words, positions and token types added up, norms after attention and MLP."""

import dataclasses

from shiftadd_tvm.config_fields import Config, field
from shiftadd_tvm.decoder_model import Projection
from shiftadd_tvm.encoder_families import _parts
from shiftadd_tvm.encoder_families._bert_like import bert_like, pooled, tiny, words_of
from shiftadd_tvm.encoder_model import Encoder, Head

TITLE = "BERT (any size), and what has its layers, such as sentence encoders"
ARCHITECTURES = (
    "BertModel",
    "BertForMaskedLM",
    "BertForSequenceClassification",
    "BertForTokenClassification",
)
FAMILY = "bert"
MASKED = "cls.predictions"


def read_config(config: Config) -> Encoder:
    """Return the encoder; raise `BadFileError` or `UnsupportedError` with the key at fault."""
    name = _parts.architecture(config, FAMILY, ARCHITECTURES)
    first, hidden = pooled(config, FAMILY), field(config, "hidden_size", int)
    linear = Projection("classifier", _parts.labels(config), hidden, True)
    outputs: tuple[Head, ...] = (first,)
    if name == "BertForMaskedLM":
        dense, norm = (f"{MASKED}.transform.{part}" for part in ("dense", "LayerNorm"))
        outputs += (words_of(config, FAMILY, dense, norm, f"{MASKED}.bias"),)
    elif name == "BertForSequenceClassification":
        first = dataclasses.replace(first, optional=False)
        outputs = (first, Head("logits", (linear,), of=(first.output,)))
    elif name == "BertForTokenClassification":
        outputs += (Head("logits", (linear,), rows="all"),)
    found = bert_like(config, FAMILY, outputs=outputs)
    # copies of what is read, and the head that told whether one sentence follows another
    copies = (f"{MASKED}.decoder.", "cls.seq_relationship.")
    return dataclasses.replace(found, unread=(*found.unread, *copies))


def tiny_config() -> Config:
    """Return a model with a pooler and a classifier over it."""
    return tiny(FAMILY, "BertForSequenceClassification")
