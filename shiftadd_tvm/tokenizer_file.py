"""Open a tokenizer.json: one place for both rooms that tokenize."""

import tokenizers

from shiftadd_tvm.errors import BadFileError

TOKENIZER = "tokenizer.json"


def open_tokenizer(content: bytes, origin: object) -> tokenizers.Tokenizer:
    """Return the tokenizer of a tokenizer.json, which neither cuts texts nor pads them.

    `origin` names the model in errors (`BadFileError`).
    """
    try:
        tokenizer = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
    except Exception as error:  # noqa: BLE001  the library raises nothing narrower
        raise BadFileError(
            f"{origin}: {TOKENIZER} cannot be read ({error}); get the model's own again."
        ) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
