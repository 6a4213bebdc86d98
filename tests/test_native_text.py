"""The text part of libshiftadd gives what Python's tokenizers and jinja give, on texts that are drawn."""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from ctypes import byref, c_size_t
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native_text import (
    BAD_FILE,
    BOS,
    NOTHING,
    TEMPLATE,
    UNSUPPORTED,
    USAGE,
    NativeStream,
    NativeTokenizer,
    Refused,
    call,
    library,
)
from tokenizer_layouts import LAYOUTS, layout
from tokenizers import Tokenizer as Library

from shiftadd_tvm import checkpoint
from shiftadd_tvm.runtime.text import Tokenizer

ROOT = Path(__file__).resolve().parent.parent
GGUF = {"smollm2": "SmolLM2-135M-Instruct.Q4_1.gguf", "gemma3": "gemma-3-270m-q4_k_m.gguf"}
FETCHED = (*GGUF, "gpt2", "qwen")
ODD = (
    *(
        "'s",
        "'LL",
        "\u017f",
        "\u212a",
        "\u0345",
        "\u0301",
        "\u1100\u1161\u11a8",
        "\u2126",
        "\ufb01",
        "\u200d",
    ),
    *(
        "  ",
        "\n\n",
        "\r\n",
        "\t",
        "\u00a0",
        "\u3000",
        "\u0085",
        "1234",
        "½",
        "٣",
        "th",
        "--",
        ";",
        "🏽",
        "<0x41>",
    ),
    *(
        "\u2581",
        "Hello",
        " world",
        "été",
        "日本語",
        "\0",
        "\ufffd",
        "\U0010ffff",
        "\u0c4d",
        "\U00016d63",
    ),
)


@pytest.fixture(scope="session")
def cache() -> Path:
    """The folder with the real models' files, fetched where they are not there."""
    for script, *wanted in (("fetch_data.py", "text", *GGUF), ("fetch_tokenizers.py",)):
        subprocess.run([sys.executable, str(ROOT / "examples" / script), *wanted], check=True)
    return Path(os.environ.get("SHIFTADD_CACHE", ROOT / ".cache"))


@functools.cache
def real(name: str, folder: Path) -> bytes:
    """Return the tokenizer.json of a real model."""
    if name in GGUF:
        source = checkpoint.open_checkpoint(folder / name / GGUF[name])
        return source.tokenizer_files()["tokenizer.json"]
    return (folder / "tokenizers" / f"{name}.json").read_bytes()


@functools.cache
def both(content: bytes) -> tuple[NativeTokenizer, Library]:
    return NativeTokenizer(content), Library.from_str(content.decode())


@pytest.fixture(params=[*LAYOUTS, *FETCHED])
def content(request: pytest.FixtureRequest) -> bytes:
    if request.param in LAYOUTS:
        return layout(request.param).encode()
    return real(request.param, request.getfixturevalue("cache"))


def texts(added: Sequence[str]) -> st.SearchStrategy[str]:
    """Draw texts of what tokenizers treat in a way of its own, and of everything else."""
    pieces = st.one_of(
        st.sampled_from([*ODD, *added]),
        st.text(st.characters(codec="utf-8"), max_size=4),
        st.text("aeist hTHN.,\n", max_size=8),
    )
    return st.lists(pieces, max_size=12).map("".join)


def test_ids_and_texts_equal_those_of_the_library(content: bytes) -> None:
    native, theirs = both(content)
    added = [token.content for token in theirs.get_added_tokens_decoder().values()][:40]

    @settings(max_examples=100, deadline=None)
    @given(texts(added), st.lists(st.integers(0, theirs.get_vocab_size() + 2), max_size=8))
    def check(text: str, ids: list[int]) -> None:
        for around, special in ((NOTHING, False), (TEMPLATE, True)):
            expected = theirs.encode(text, add_special_tokens=special).ids
            assert native.encode(text, around) == expected
        for tokens in (expected, ids):
            for keep in (False, True):
                decoded = theirs.decode(tokens, skip_special_tokens=not keep)
                assert native.decode(tokens, keep) == decoded

    check()


@pytest.mark.parametrize(("name", "normalizer"), [("flagged", None), ("cases", "NFC")])
def test_every_code_point_is_treated_as_the_library_does(name: str, normalizer: str | None) -> None:
    fields = json.loads(layout(name))
    if normalizer:
        fields["normalizer"] = {"type": normalizer}
    native, theirs = both(json.dumps(fields).encode())
    ideographs = (*range(0x4010, 0x9000), *range(0xAC80, 0xD700), *range(0x20010, 0x31300))
    codes = set(range(0x32000)) - set(range(0xD800, 0xE000)) - set(ideographs)
    text = " ".join(f"a{chr(code)}\u0316 {chr(code)}1" for code in sorted(codes))
    assert native.encode(text) == theirs.encode(text, add_special_tokens=False).ids


def test_tokens_by_id_and_by_text(content: bytes) -> None:
    native, theirs = both(content)
    assert native.count == theirs.get_vocab_size()
    for id in [*range(0, native.count, 97), native.count - 1]:
        token = theirs.id_to_token(id)
        assert native.token(id) == token and native.id(token) == theirs.token_to_id(token)
    assert native.id("no such token") is None
    with pytest.raises(Refused, match="no token with id -1") as refused:
        native.token(-1)
    assert refused.value.status == USAGE


def test_a_long_text(content: bytes, cache: Path) -> None:
    native, theirs = both(content)
    text = (cache / "text" / "wikipedia_test.txt").read_text(encoding="utf-8")[:50_000]
    ids = native.encode(text)
    assert ids == theirs.encode(text, add_special_tokens=False).ids
    assert native.decode(ids) == theirs.decode(ids)


def test_a_stream_shows_what_pythons_shows(content: bytes) -> None:
    native, _ = both(content)
    python = Tokenizer({"tokenizer.json": content}.get, "model")

    @settings(max_examples=30, deadline=None)
    @given(texts([]), st.integers(0, 20), st.lists(st.integers(0, native.count - 1), max_size=6))
    def check(text: str, cut: int, odd: list[int]) -> None:
        ids = [*native.encode(text), *odd]
        mine, theirs = NativeStream(native, ids[:cut]), python.stream(ids[:cut])
        for token in ids[cut:]:
            assert mine.push(token) == theirs.push(token)
        assert mine.finish() == theirs.finish()

    check()


@pytest.mark.parametrize("name", ["byte-level", "llama3", "llama2"])
@pytest.mark.parametrize("wanted", [None, True, False])
def test_bos_is_that_of_python(name: str, wanted: bool | None) -> None:
    fields = {} if wanted is None else {"add_bos_token": wanted, "bos_token": {"content": "</s>"}}
    files = {
        "tokenizer.json": layout(name).encode(),
        "tokenizer_config.json": json.dumps(fields).encode(),
    }
    native = NativeTokenizer(*files.values())
    python = Tokenizer(files.get, "model")
    assert native.bos == python.bos
    assert native.encode("hello there", BOS) == python.encode("hello there")


def changed(**fields: object) -> bytes:
    """Return GPT-2's layout with other fields."""
    return json.dumps({**json.loads(layout("byte-level")), **fields}).encode()


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"model": {"type": "Unigram", "vocab": []}}, "model of type .Unigram"),
        ({"model": {"type": "WordPiece", "vocab": {}}}, "model of type .WordPiece"),
        ({"normalizer": {"type": "BertNormalizer"}}, "normalizer of type .BertNormalizer"),
        (
            {"pre_tokenizer": {"type": "BertPreTokenizer"}},
            "pre-tokenizer of type .BertPreTokenizer",
        ),
        ({"decoder": {"type": "CTC"}}, "decoder of type .CTC"),
        ({"post_processor": {"type": "BertProcessing"}}, "post-processor of type .BertProcessing"),
        (
            {
                "pre_tokenizer": {
                    **{"type": "Split", "pattern": {"Regex": r"(?<=a)b"}, "behavior": "Isolated"},
                    "invert": False,
                }
            },
            r"pattern .* has the group \(\?<=",
        ),
    ],
)
def test_other_kinds_are_refused_by_name(fields: dict[str, object], named: str) -> None:
    with pytest.raises(
        Refused, match=f"^tokenizer.json has .*{named}.*Python's tokenizers instead.$"
    ) as refused:
        NativeTokenizer(changed(**fields))
    assert refused.value.status == UNSUPPORTED


def with_model(**fields: object) -> bytes:
    return changed(model={**json.loads(layout("byte-level"))["model"], **fields}, added_tokens=[])


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "not JSON"),
        (b"[]", "expected an object, found an array"),
        (b"{}", "key .model. is missing"),
        (b'{"model": {"type": "BPE"}}', "key .vocab. is missing"),
        (b"[" * 1_000_000, "nested more than 100 deep"),
        (b'{"model": {"type": "BPE", "vocab": {"\xff": 1}, "merges": []}}', "not UTF-8 at byte 37"),
        (b'{"model": {"type": "BPE", "vocab": {"\\ud800": 1}, "merges": []}}', "surrogate"),
        (with_model(vocab={"a": 1, "b": 1}, merges=[]), "have the same id 1"),
        (with_model(vocab={"a": 10**9}, merges=[]), "id 1000000000"),
        (with_model(vocab={"a": -1}, merges=[]), "id -1"),
        (with_model(vocab={"a": 0.5}, merges=[]), "whole number"),
        (with_model(vocab={"a": 0, "b": 1}, merges=["a b"]), "needs the token .ab."),
        (with_model(vocab={"a": 0}, merges=["a"]), "not two tokens"),
        (with_model(unk_token="none of these"), "unk_token"),
        (
            b'{"model": {"type": "BPE", "vocab": {"a": 0, "a": 1}, "merges": []}}',
            "stands there twice",
        ),
    ],
)
def test_a_broken_file_is_a_sentence(content: bytes, named: str) -> None:
    with pytest.raises(Refused, match=f"^tokenizer.json cannot be read: .*{named}") as refused:
        NativeTokenizer(content)
    assert refused.value.status == BAD_FILE


def test_an_id_that_the_library_would_not_give_is_refused() -> None:
    token = {**json.loads(layout("byte-level"))["added_tokens"][0], "content": "<new>", "id": 7777}
    with pytest.raises(Refused, match="added token .<new>. has id 7777, expected 1200"):
        NativeTokenizer(changed(added_tokens=[token]))


def test_hostile_texts_are_refused_or_encoded() -> None:
    native, _ = both(layout("byte-level").encode())
    for text in (b"a\xffb", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\xaf"):
        with pytest.raises(Refused, match="not UTF-8 at byte") as refused:
            native.encode(text)
        assert refused.value.status == USAGE
    count = c_size_t()
    for text in (b"a" * 10_000_000, b"\xf0\x9f\x99\x82" * 500_000):
        call("tokenizer_encode", native.handle, text, len(text), NOTHING, None, 0, byref(count))
        assert count.value >= len(text) // 16
    blanks = both(layout("llama3").encode())[0].encode(b" " * 1_000_000 + b"x")
    assert len(blanks) > 1000


def test_a_text_that_takes_too_long_is_refused() -> None:
    split = {
        "type": "Split",
        "pattern": {"Regex": r"(?:a+b?)+c|a"},
        "behavior": "Isolated",
        "invert": False,
    }
    native = NativeTokenizer(changed(pre_tokenizer=split))
    with pytest.raises(Refused, match="steps a letter") as refused:
        native.encode("a" * 5000)
    assert refused.value.status == USAGE
    assert (
        native.encode("aab")
        == Library.from_str(changed(pre_tokenizer=split).decode()).encode("aab").ids
    )


def test_wrong_arguments_are_sentences() -> None:
    library_ = library()
    assert library_.shiftadd_tokenizer_load(b"/nowhere", None) == USAGE
    assert b"tokenizer is NULL" in library_.shiftadd_last_error()
    assert library_.shiftadd_tokenizer_encode(None, b"", 0, 0, None, 0, None) == USAGE
    assert library_.shiftadd_tokenizer_bos(None) == -1
    native, _ = both(layout("byte-level").encode())
    with pytest.raises(Refused, match="Around is 3"):
        native.encode("a", 3)
