"""Text of a model: encoding, decoding as tokens come, stop strings, templates, conversations."""

import json
from pathlib import Path

import pytest
from conftest import Tiny
from hypothesis import given
from hypothesis import strategies as st
from models import save_tokenizer

from shiftadd_tvm.errors import BadFileError, UnsupportedError, UsageError
from shiftadd_tvm.runtime.generation import TextModel
from shiftadd_tvm.runtime.text import StopFilter, Tokenizer


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder, 300)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def model(tiny: Tiny) -> TextModel:
    return TextModel(tiny.artifact)


def configured(files: dict[str, bytes], **fields: object) -> Tokenizer:
    config = {**json.loads(files["tokenizer_config.json"]), **fields}
    return Tokenizer({**files, "tokenizer_config.json": json.dumps(config).encode()}.get, "model")


def test_a_stream_gives_the_text_whole_characters_at_a_time(files: dict[str, bytes]) -> None:
    tokenizer = Tokenizer(files.get, "model")
    text = "naïve ☃ 🙂 text"
    ids = tokenizer.encode(text)
    for cut in range(len(ids)):
        stream = tokenizer.stream(ids[:cut])
        pieces = [stream.push(token) for token in ids[cut:]]
        assert "�" not in "".join(pieces[3:])  # the cut itself may split a character
        before = tokenizer.decode(ids[:cut])
        if text.startswith(before):
            assert before + "".join(pieces) + stream.finish() == text


def test_a_stream_that_ends_inside_a_character(files: dict[str, bytes]) -> None:
    tokenizer = Tokenizer(files.get, "model")
    stream = tokenizer.stream()
    ids = tokenizer.encode("ab🙂")[:-1]
    shown = "".join(stream.push(token) for token in ids)
    assert shown == "ab" and shown + stream.finish() == tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("fields", "bos"),
    [({}, None), ({"add_bos_token": True}, 1), ({"add_bos_token": False}, None)],
)
def test_bos_is_added_where_the_tokenizer_says_so(
    files: dict[str, bytes], fields: dict[str, object], bos: int | None
) -> None:
    tokenizer = configured(files, **fields)
    assert tokenizer.bos == bos
    plain = tokenizer.encode("hi", bos=False)
    assert tokenizer.encode("hi") == ([bos, *plain] if bos is not None else plain)


def test_bos_is_added_where_the_tokenizer_itself_does(files: dict[str, bytes]) -> None:
    from tokenizers import Tokenizer as Inner
    from tokenizers.processors import TemplateProcessing

    inner = Inner.from_str(files["tokenizer.json"].decode())
    inner.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = Tokenizer({"tokenizer.json": inner.to_str().encode()}.get, "model")
    assert tokenizer.bos == 1 and tokenizer.encode("a")[0] == 1


@given(st.text("abc", max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
def test_a_stop_filter_ends_before_the_first_stop(text: str, stops: list[str]) -> None:
    stop_filter, shown = StopFilter(stops), ""
    for character in text:
        shown += stop_filter.push(character)
        assert not any(stop in shown for stop in stops)
        if stop_filter.stopped:
            break
    shown += "" if stop_filter.stopped else stop_filter.finish()
    assert text.startswith(shown)
    assert stop_filter.stopped == any(stop in text for stop in stops)
    if not stop_filter.stopped:
        assert shown == text


def test_a_stop_is_held_back_only_while_it_may_come() -> None:
    stop_filter = StopFilter(["<end>"])
    assert [stop_filter.push(piece) for piece in ("a<", "en", "x", "<end", ">b")] == [
        *("a", "", "<enx", "", "")
    ]
    assert stop_filter.stopped


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ bos_token }}{{ messages[0].content }}{{ messages | tojson }}", '<s>hi[{"role"'),
        ([{"name": "rag", "template": "no"}, {"name": "default", "template": "yes"}], "yes"),
    ],
)
def test_templates(files: dict[str, bytes], template: object, expected: str) -> None:
    tokenizer = configured(files, chat_template=template)
    assert tokenizer.render([{"role": "user", "content": "hi"}]).startswith(expected)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{% set x = messages.append(1) %}",
        "{{ raise_exception('roles must alternate') }}",
        "{% if %}",
    ],
)
def test_a_template_that_fails_is_a_sentence(files: dict[str, bytes], template: str) -> None:
    with pytest.raises(BadFileError, match="its chat template fails: "):
        configured(files, chat_template=template).render([{"role": "user", "content": "hi"}])


def test_a_model_without_template(files: dict[str, bytes]) -> None:
    with pytest.raises(UnsupportedError, match="no chat template.*shiftadd-tvm run"):
        Tokenizer(files.get, "model").render([])


@pytest.mark.parametrize("content", [None, b"{", b"\xff", b"[]"])
def test_a_tokenizer_that_cannot_be_read(files: dict[str, bytes], content: bytes | None) -> None:
    with pytest.raises(BadFileError, match="tokenizer.json"):
        Tokenizer({"tokenizer.json": content}.get, "model")


def test_a_conversation_stays_in_the_cache(model: TextModel) -> None:
    chat = model.chat()
    replies = []
    for line in ("hello", "and more"):
        generation = chat.reply(line, 8)
        "".join(generation)
        chat.keep(generation)
        replies.append(generation)
    assert chat.messages[1] == {"role": "assistant", "content": replies[0].text}
    whole = model.encode(model.tokenizer.render(chat.messages[:3]), bos=False)
    # the first turn is not prefilled again
    prefilled = replies[1].to_dict()["prompt_tokens"]
    assert isinstance(prefilled, int) and prefilled < len(whole) - len(replies[0].tokens)
    # and the answer is that of a session which reads everything anew
    chat.reset()
    session = model.engine.session()
    assert list(session.generate(whole, 8)) == replies[1].tokens
    session.close()


def test_a_conversation_that_outgrows_the_context(model: TextModel) -> None:
    chat = model.chat()
    with pytest.raises(UsageError, match="context is 320"):
        chat.reply("x" * 400)
    assert chat.messages == []
    assert "".join(chat.reply("hi", 4)) is not None
    chat.reset()


def test_generation_ends_at_the_context(model: TextModel) -> None:
    generation = model.generate("x" * 314, 100)
    text = "".join(generation)
    assert generation.finish_reason == "context" and generation.text == text
    assert len(generation.tokens) == 320 - 314 + 1
    generation._session.close()


def test_limits_are_checked_before_the_work(model: TextModel, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--max-new-tokens is 0"):
        model.generate("a", 0)
    with pytest.raises(
        UsageError, match="The prompt has 400 tokens, the artifact's context is 320"
    ):
        model.generate("a" * 400)
