"""Read a model's tokenizer: one place for both rooms that tokenize.

    tokenizer.json          the tokenizer
    tokenizer_config.json   add_bos_token, bos_token, eos_token (all optional)
"""

import json
from collections.abc import Callable, Mapping

import tokenizers

from shiftadd_tvm.errors import BadFileError

TOKENIZER, CONFIG = "tokenizer.json", "tokenizer_config.json"
Read = Callable[[str], bytes | None]  # file name -> its bytes, None where there is no such file


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


def read_config(read: Read, origin: object) -> Mapping[str, object]:
    """Return tokenizer_config.json; empty where there is none."""
    try:
        config = json.loads(read(CONFIG) or b"{}")
    except (ValueError, RecursionError) as error:
        raise BadFileError(f"{origin}: {CONFIG} is not JSON ({error}).") from None
    return config if isinstance(config, dict) else {}


def special(config: Mapping[str, object], name: str) -> str:
    """Return the text of a special token, such as "eos_token"; empty where there is none."""
    token = config.get(name)
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else ""


def first_token(tokenizer: tokenizers.Tokenizer, config: Mapping[str, object]) -> int | None:
    """Return the token that begins every text: config says so, or else the tokenizer adds it."""
    wanted = config.get("add_bos_token")
    if isinstance(wanted, bool):
        named: int | None = tokenizer.token_to_id(special(config, "bos_token"))
        return named if wanted else None
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    full = tokenizer.encode("a", add_special_tokens=True).ids
    return int(full[0]) if full[:1] != plain[:1] else None
