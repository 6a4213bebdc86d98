"""A chat template as literal text between messages, for hosts that know no jinja.

Most templates only write fixed text between the contents of messages: what stands between two of them
depends on their roles alone. `find_form` renders conversations with jinja, reads those texts off, and
keeps them only if they give the same as jinja on all of its probes, hostile contents included. The form
is written beside the artifact's tokenizer as chat_form.json (docs/artifact.md), for libshiftadd.

    between[role][role]   the text between messages of two roles; "edge" is the beginning, and the end
                          (open for the assistant's reply). What is missing the template refuses, or
                          writes in a way that depends on more.
    content[role][role]   what happens to the content of the second of them: nothing if it is missing,
                          "strip" (white space at both ends), "strip-end" (white space at the end of all
                          the text until then), or "after-thought" (what stands before a last </think>,
                          and newlines behind it, are dropped)
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from shiftadd_tvm.errors import BadFileError, UsageError
from shiftadd_tvm.runtime.chat_template import ChatTemplate, Message, find_template
from shiftadd_tvm.tokenizer_file import Read

FILE = "chat_form.json"
VERSION = 1
EDGE = "edge"
ROLES = ("system", "user", "assistant")
THOUGHT = "</think>"
NONE = "none"
# the text so far, a content -> the text with it
CHANGES: dict[str, Callable[[str, str], str]] = {
    NONE: lambda text, content: text + content,
    "strip": lambda text, content: text + content.strip(),
    "strip-end": lambda text, content: (text + content).rstrip(),
    "after-thought": lambda text, content: text + _after_thought(content),
}
# Contents that a template may treat in a way of its own.
PROBES = (
    *(
        "",
        " ",
        "\n\n",
        " before",
        "after \n",
        "\t both\u00a0",
        "two\nlines",
        "{{ x }} {% if %}",
        "a\"b'c\\d",
    ),
    *(
        "<|im_end|></s>",
        "日本語 🙂",
        "<think>\nwhy\n</think>\n\nso",
        "</think>",
        "[INST] <<SYS>>",
        "UPPER lower",
    ),
)
LONGEST = 4  # messages of the conversations that are probed in every order of roles
# What a form must know: questions and answers.
TALKS = [("user", *("assistant", "user") * turns) for turns in range(4)]
ORDERS: list[tuple[str, ...]] = [
    *TALKS[2:],
    *(("system", *talk) for talk in TALKS[2:]),
    *(roles for size in range(1, LONGEST + 1) for roles in itertools.product(ROLES, repeat=size)),
]

Pair = tuple[str, str]


@dataclass
class ChatForm:
    """The literal texts of a chat template."""

    between: dict[Pair, str] = field(default_factory=dict)
    content: dict[Pair, str] = field(default_factory=dict)

    def render(self, messages: Sequence[Message]) -> str:
        """Return the conversation, open for a reply; `UsageError` where the template takes none such."""
        roles = [message["role"] for message in messages]
        text = ""
        for pair, message in zip(_pairs(roles), [*messages, None], strict=True):
            if pair not in self.between:
                raise UsageError(f"The model's chat template takes no {pair[1]} after {pair[0]}.")
            text += self.between[pair]
            if message is not None:
                text = CHANGES[self.content.get(pair, NONE)](text, message["content"])
        return text

    def to_dict(self) -> dict[str, object]:
        """Return what chat_form.json holds."""
        content = {p: self.content.get(p, NONE) for p in self.between}
        return {
            "version": VERSION,
            "content": _nested({p: change for p, change in content.items() if change != NONE}),
            "between": _nested(self.between),
        }


def _nested(values: dict[Pair, str]) -> dict[str, dict[str, str]]:
    rows: dict[str, dict[str, str]] = {}
    for (left, right), value in values.items():
        rows.setdefault(left, {})[right] = value
    return rows


def _after_thought(content: str) -> str:
    return content.split(THOUGHT)[-1].lstrip("\n") if THOUGHT in content else content


def find_form(read: Read, origin: object) -> ChatForm | None:
    """Return the form of the chat template among the files that `read` returns, if it has one."""
    try:
        template = find_template(read, origin)
    except BadFileError:
        return None  # as `chat` will say, where it is needed
    if template is None or "strftime_now" in template.source:  # tomorrow's text would be another
        return None
    form = ChatForm()
    if not all(_learn(form, template, roles) for roles in TALKS):
        return None
    needed = set(form.between)
    with_system = replace(form)
    if all(_learn(with_system, template, ("system", *roles)) for roles in TALKS):
        form = with_system
    _learn_others(form, template, set(form.between))
    return form if _find_changes(form, template, needed) else None


def _pairs(roles: Sequence[str]) -> list[Pair]:
    return list(itertools.pairwise((EDGE, *roles, EDGE)))


def _named(roles: Sequence[str]) -> list[Message]:
    """Return messages of `roles` whose contents appear nowhere else."""
    return [{"role": role, "content": f"Zq{place}qZ"} for place, role in enumerate(roles)]


def _rendered(template: ChatTemplate, messages: Sequence[Message]) -> str | None:
    try:
        return template.render(messages)
    except BadFileError:
        return None


def _gaps(template: ChatTemplate, roles: Sequence[str]) -> list[str] | None:
    """Return the texts between the contents of a conversation; None where they do not stand in order."""
    messages = _named(roles)
    rest = _rendered(template, messages)
    gaps = []
    for message in messages:
        if rest is None or rest.count(message["content"]) != 1:
            return None
        gap, _, rest = rest.partition(message["content"])
        gaps.append(gap)
    return None if rest is None else [*gaps, rest]


def _learn(form: ChatForm, template: ChatTemplate, roles: Sequence[str]) -> bool:
    """Take over the texts of one conversation; false, and nothing new, where they contradict `form`."""
    found = dict(form.between)
    gaps = _gaps(template, roles)
    for pair, gap in zip(_pairs(roles), gaps or (), strict=False):
        if found.setdefault(pair, gap) != gap:
            return False
    form.between = found
    return gaps is not None


def _learn_others(form: ChatForm, template: ChatTemplate, needed: set[Pair]) -> None:
    """Learn other orders of roles, and forget again what is not always right."""
    for roles in ORDERS:
        _learn(form, template, roles)
    for roles in ORDERS:
        if not _agrees(form, template, _named(roles)):
            _forget(form, set(_pairs(roles)) - needed)


def _forget(form: ChatForm, pairs: set[Pair]) -> None:
    form.between = {pair: text for pair, text in form.between.items() if pair not in pairs}


def _agrees(form: ChatForm, template: ChatTemplate, messages: Sequence[Message]) -> bool:
    """Tell whether the form gives what jinja gives; what it refuses is no contradiction."""
    try:
        return form.render(messages) == _rendered(template, messages)
    except UsageError:
        return True


def _find_changes(form: ChatForm, template: ChatTemplate, needed: set[Pair]) -> bool:
    """Find what happens to contents; false if it is none of `CHANGES` where a form must know it."""
    for pair in [pair for pair in form.between if pair[1] != EDGE]:
        for change in CHANGES:
            form.content[pair] = change
            if all(_agrees(form, template, messages) for messages in _probes(form, pair)):
                break
        else:
            if pair in needed:
                return False
            _forget(
                form, {p for p in form.between if "system" in p} if "system" in pair else {pair}
            )
    return True


def _probes(form: ChatForm, pair: Pair) -> Iterator[list[Message]]:
    """Yield conversations with hostile contents in the messages that follow as in `pair`."""
    known = (roles for roles in ORDERS if set(_pairs(roles)) <= set(form.between))
    for roles in itertools.islice((roles for roles in known if pair in _pairs(roles)), 2):
        for probe in PROBES:
            yield [
                message | {"content": probe} if place == pair else message
                for place, message in zip(_pairs(roles), _named(roles), strict=False)
            ]
