"""Chat templates as literal text: what jinja writes, Python's form and the library's write too."""

import json
from ctypes import byref, c_void_p

import pytest
from chat_templates import EMPTY_SYSTEM, FORMS, NO_FORMS
from conftest import Tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from native_text import UNSUPPORTED, USAGE, NativeTokenizer, Refused, call
from tokenizer_layouts import layout

from shiftadd_tvm import chat_form
from shiftadd_tvm.errors import BadFileError, UsageError
from shiftadd_tvm.runtime.chat_template import ChatTemplate, Message
from shiftadd_tvm.runtime.text import Tokenizer

CONFIG = {"bos_token": "<s>", "eos_token": {"content": "</s>"}}
TALKS = st.lists(
    st.builds(
        lambda role, content: {"role": role, "content": content},
        st.sampled_from(chat_form.ROLES),
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6)
        | st.sampled_from([" a ", "\n", "<think>b</think>\n\nc", "\u2028d\x1c", ""]),
    ),
    min_size=1,
    max_size=5,
)


def find(source: str) -> chat_form.ChatForm | None:
    config = json.dumps({**CONFIG, "chat_template": source}).encode()
    return chat_form.find_form({"tokenizer_config.json": config}.get, "model")


def opened(form: chat_form.ChatForm) -> NativeTokenizer:
    return NativeTokenizer(layout("byte-level").encode(), form=json.dumps(form.to_dict()).encode())


@pytest.mark.parametrize("name", FORMS)
def test_a_common_form_is_found_and_writes_what_jinja_writes(name: str) -> None:
    template, form = ChatTemplate(FORMS[name], CONFIG, "model"), find(FORMS[name])
    assert form is not None
    native = opened(form)

    @settings(max_examples=100, deadline=None)
    @given(TALKS)
    def check(messages: list[Message]) -> None:
        try:
            expected = form.render(messages)
        except UsageError:
            with pytest.raises(Refused, match="takes no conversation") as refused:
                native.render(messages)
            assert refused.value.status == USAGE
            return
        assert native.render(messages) == expected == template.render(messages)

    check()


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("system", [False, True])
def test_a_form_knows_ordinary_conversations(name: str, system: bool) -> None:
    form = find(FORMS[name])
    assert form is not None
    roles = [*["system"] * system, "user", "assistant", "user"]
    messages = [{"role": role, "content": f" {role}\n"} for role in roles]
    assert form.render(messages) == ChatTemplate(FORMS[name], CONFIG, "model").render(messages)


@pytest.mark.parametrize("name", ["llama2", "gemma"])
def test_what_a_template_refuses_the_form_refuses(name: str) -> None:
    form, messages = find(FORMS[name]), [{"role": "user", "content": "a"}] * 2
    with pytest.raises(BadFileError):
        ChatTemplate(FORMS[name], CONFIG, "model").render(messages)
    assert form is not None
    with pytest.raises(Refused, match="in which role user follows role user"):
        opened(form).render(messages)


def test_system_texts_are_left_out_where_they_do_not_fit() -> None:
    form = find(EMPTY_SYSTEM)
    assert form is not None and not any("system" in pair for pair in form.between)
    messages = [{"role": "user", "content": "a"}]
    assert form.render(messages) == ChatTemplate(EMPTY_SYSTEM, CONFIG, "model").render(messages)


@pytest.mark.parametrize("name", NO_FORMS)
def test_a_template_that_is_no_literal_text_has_no_form(name: str) -> None:
    assert find(NO_FORMS[name]) is None


def test_no_template_has_no_form() -> None:
    assert chat_form.find_form({}.get, "model") is None
    native = NativeTokenizer(layout("byte-level").encode())
    with pytest.raises(
        Refused, match="no chat_form.json: its model has no chat template"
    ) as refused:
        native.render([{"role": "user", "content": "a"}])
    assert refused.value.status == UNSUPPORTED


def test_compile_writes_the_form(tiny: Tiny) -> None:
    manifest = json.loads((tiny.artifact / "manifest.json").read_text())
    assert chat_form.FILE in manifest["files"]
    native = NativeTokenizer.__new__(NativeTokenizer)
    native.handle = c_void_p()
    call("tokenizer_load", str(tiny.artifact).encode(), byref(native.handle))
    python = Tokenizer(lambda name: _read(tiny, name), tiny.artifact)
    messages = [{"role": role, "content": f"it is {role}"} for role in ("system", "user")]
    assert native.render(messages) == python.render(messages)
    assert native.encode(native.render(messages)) == python.encode(
        python.render(messages), bos=False
    )


def _read(tiny: Tiny, name: str) -> bytes | None:
    path = tiny.artifact / name
    return path.read_bytes() if path.is_file() else None


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"version": 2}, "has a chat form of version 2"),
        ({"between": {"narrator": {"user": ""}}}, "has a conversation with the role .narrator"),
        ({"content": {"edge": {"user": "shout"}}}, "has a chat form with the change .shout"),
        (
            {"between": {"edge": {"user": 1}}},
            "cannot be read: .user.: expected a string, found a number",
        ),
    ],
)
def test_a_broken_form_is_a_sentence(fields: dict[str, object], named: str) -> None:
    form = json.dumps({"version": 1, "content": {}, "between": {}, **fields}).encode()
    with pytest.raises(Refused, match=f"^chat_form.json {named}"):
        NativeTokenizer(layout("byte-level").encode(), form=form)
