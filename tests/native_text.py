"""The text part of libshiftadd for the tests, by ctypes: its C ABI as shiftadd_text.h declares it."""

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, byref, c_char_p, c_int32, c_size_t, c_void_p
from functools import cache
from typing import Any

from shiftadd_tvm.runtime import native_build

NOTHING, BOS, TEMPLATE = range(3)
USAGE, UNSUPPORTED, BAD_FILE = 2, 3, 4


class Files(ctypes.Structure):
    """shiftadd_tokenizer_files."""

    _fields_ = [
        ("tokenizer", c_char_p),
        ("tokenizer_size", c_size_t),
        ("config", c_char_p),
        ("config_size", c_size_t),
        ("chat_form", c_char_p),
        ("chat_form_size", c_size_t),
    ]


class Message(ctypes.Structure):
    """shiftadd_message."""

    _fields_ = [("role", c_char_p), ("content", c_char_p)]


class Refused(Exception):
    """A call that failed: its status and its sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


@cache
def library() -> ctypes.CDLL:
    """Return the library, built if its sources are newer."""
    if not native_build.is_current(native_build.IN_TREE):
        native_build.build(native_build.IN_TREE)
    loaded = ctypes.CDLL(str(native_build.IN_TREE))
    loaded.shiftadd_last_error.restype = c_char_p
    loaded.shiftadd_tokenizer_count.restype = c_size_t
    handle, count, size = c_void_p, c_size_t, POINTER(c_size_t)
    ids, text = POINTER(c_int32), c_char_p
    arguments = {
        "load": [text, POINTER(handle)],
        "create": [POINTER(Files), POINTER(handle)],
        "free": [handle],
        "count": [handle],
        "bos": [handle],
        "id": [handle, text, count],
        "token": [handle, c_int32, text, count, size],
        "encode": [handle, text, count, c_int32, ids, count, size],
        "decode": [handle, ids, count, c_int32, text, count, size],
        "has_chat": [handle],
        "render": [handle, POINTER(Message), count, text, count, size],
    }
    for name, types in arguments.items():
        getattr(loaded, f"shiftadd_tokenizer_{name}").argtypes = types
    piece = [POINTER(c_void_p), size]
    loaded.shiftadd_text_stream_create.argtypes = [handle, ids, count, POINTER(handle)]
    loaded.shiftadd_text_stream_free.argtypes = [handle]
    loaded.shiftadd_text_stream_push.argtypes = [handle, c_int32, *piece]
    loaded.shiftadd_text_stream_finish.argtypes = [handle, *piece]
    return loaded


def call(name: str, *arguments: Any) -> None:
    status = getattr(library(), f"shiftadd_{name}")(*arguments)
    if status:
        raise Refused(status, library().shiftadd_last_error().decode())


def _array(ids: Sequence[int]) -> Any:
    return (c_int32 * len(ids))(*ids)


class NativeTokenizer:
    """A shiftadd_tokenizer."""

    def __init__(self, tokenizer: bytes, config: bytes = b"", form: bytes = b"") -> None:
        self.handle = c_void_p()
        files = Files(tokenizer, len(tokenizer), config, len(config), form, len(form))
        call("tokenizer_create", byref(files), byref(self.handle))

    def __del__(self) -> None:
        library().shiftadd_tokenizer_free(self.handle)

    @property
    def count(self) -> int:
        return library().shiftadd_tokenizer_count(self.handle)

    @property
    def bos(self) -> int | None:
        found = library().shiftadd_tokenizer_bos(self.handle)
        return None if found < 0 else found

    def id(self, token: str) -> int | None:
        encoded = token.encode()
        found = library().shiftadd_tokenizer_id(self.handle, encoded, len(encoded))
        return None if found < 0 else found

    def token(self, id: int) -> str:
        return self._text("tokenizer_token", id)

    def encode(self, text: str | bytes, around: int = NOTHING) -> list[int]:
        content = text.encode() if isinstance(text, str) else text
        count = c_size_t()
        ids = _array([0] * (2 * len(content) + 8))
        arguments = (self.handle, content, len(content), around, ids, len(ids), byref(count))
        call("tokenizer_encode", *arguments)
        return ids[: count.value]

    def decode(self, ids: Sequence[int], keep_special: bool = False) -> str:
        return self._text("tokenizer_decode", _array(ids), len(ids), int(keep_special))

    def render(self, messages: Sequence[dict[str, str]]) -> str:
        plain = [Message(m["role"].encode(), m["content"].encode()) for m in messages]
        return self._text("tokenizer_render", (Message * len(plain))(*plain), len(plain))

    def _text(self, name: str, *arguments: Any) -> str:
        size = c_size_t()
        call(name, self.handle, *arguments, None, 0, byref(size))
        buffer = ctypes.create_string_buffer(size.value + 1)
        call(name, self.handle, *arguments, buffer, len(buffer), byref(size))
        return buffer.raw[: size.value].decode()


class NativeStream:
    """A shiftadd_text_stream."""

    def __init__(self, tokenizer: NativeTokenizer, prompt: Sequence[int]) -> None:
        self.handle = c_void_p()
        arguments = (tokenizer.handle, _array(prompt), len(prompt), byref(self.handle))
        call("text_stream_create", *arguments)

    def __del__(self) -> None:
        library().shiftadd_text_stream_free(self.handle)

    def push(self, token: int) -> str:
        return self._piece("push", token)

    def finish(self) -> str:
        return self._piece("finish")

    def _piece(self, name: str, *arguments: int) -> str:
        text, size = c_void_p(), c_size_t()
        call(f"text_stream_{name}", self.handle, *arguments, byref(text), byref(size))
        return ctypes.string_at(text, size.value).decode()
