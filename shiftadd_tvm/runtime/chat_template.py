"""The chat template of a model: a jinja text in its files, rendered in a sandbox.

tokenizer_config.json   bos_token, eos_token, chat_template (all optional)
chat_template.jinja     the chat template, preferred to the one above
"""

import functools
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from shiftadd_tvm.errors import BadFileError
from shiftadd_tvm.tokenizer_file import Read, read_config, special

if TYPE_CHECKING:
    import jinja2

TEMPLATE = "chat_template.jinja"

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}


class ChatTemplate:
    """A chat template; `origin` names the model in errors (`BadFileError`)."""

    def __init__(self, source: str, config: Mapping[str, object], origin: object) -> None:
        """Keep the jinja text `source`; special tokens come from the tokenizer's `config`."""
        self.source = source
        self._tokens = {name: special(config, name) for name in ("bos_token", "eos_token")}
        self._origin = origin

    def render(self, messages: Sequence[Message]) -> str:
        """Return a conversation as the model wants it, open for the assistant's reply."""
        import jinja2

        try:
            return self._compiled.render(
                messages=list(messages), add_generation_prompt=True, **self._tokens
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
            raise BadFileError(f"{self._origin}: its chat template fails: {error}.") from None

    @functools.cached_property
    def _compiled(self) -> "jinja2.Template":
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
        return environment.from_string(self.source)


def find_template(read: Read, origin: object) -> ChatTemplate | None:
    """Return the chat template among the files that `read` returns, or None."""
    config = read_config(read, origin)
    content = read(TEMPLATE)
    if content is not None:
        return ChatTemplate(content.decode("utf-8", "replace"), config, origin)
    template = config.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {entry.get("name"): entry.get("template") for entry in template}
        template = named.get("default")
    return ChatTemplate(template, config, origin) if isinstance(template, str) else None


def _tojson(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> None:
    import jinja2

    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    from datetime import datetime

    return datetime.now().strftime(form)
