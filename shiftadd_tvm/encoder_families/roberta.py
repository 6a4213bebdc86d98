"""RoBERTa: BERT whose positions count the tokens that are not padding, from the padding's id on."""

import dataclasses

from shiftadd_tvm.config_fields import Config, field
from shiftadd_tvm.decoder_model import Projection
from shiftadd_tvm.encoder_families import _parts
from shiftadd_tvm.encoder_families._bert_like import bert_like, pooled, tiny, words_of
from shiftadd_tvm.encoder_model import Encoder, Head

TITLE = "RoBERTa (base, large), DistilRoBERTa"
ARCHITECTURES = (
    "RobertaModel",
    "RobertaForMaskedLM",
    "RobertaForSequenceClassification",
    "RobertaForTokenClassification",
)
FAMILY = "roberta"


def read_config(config: Config) -> Encoder:
    """Return the encoder; raise `BadFileError` or `UnsupportedError` with the key at fault."""
    name, hidden = (
        _parts.architecture(config, FAMILY, ARCHITECTURES),
        field(config, "hidden_size", int),
    )
    labels = _parts.labels(config)
    outputs: tuple[Head, ...] = (pooled(config, FAMILY),)
    if name == "RobertaForMaskedLM":
        outputs += (
            words_of(config, FAMILY, "lm_head.dense", "lm_head.layer_norm", "lm_head.bias"),
        )
    elif name == "RobertaForSequenceClassification":
        dense = Projection("classifier.dense", hidden, hidden, True)
        last = Projection("classifier.out_proj", labels, hidden, True)
        outputs += (Head("logits", (dense, "tanh", last)),)
    elif name == "RobertaForTokenClassification":
        linear = Projection("classifier", labels, hidden, True)
        outputs += (Head("logits", (linear,), rows="all"),)
    padding = field(config, "pad_token_id", int, 1)
    found = bert_like(config, FAMILY, outputs=outputs, padding=padding)
    return dataclasses.replace(found, unread=(*found.unread, "lm_head.decoder."))


def tiny_config() -> Config:
    """Return a model with a classifier of two linears."""
    return tiny(FAMILY, "RobertaForSequenceClassification", pad_token_id=1, type_vocab_size=1)
