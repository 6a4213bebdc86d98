"""Run in a child with the emulated GPU: what sequences of one model share, and what each has alone.

    python cuda_sessions.py ARTIFACT [SEQUENCES]

ends with an error where a fork, a sequence that was cut, a batch, or a function called by its name gives
other numbers than a sequence of its own, or where decode steps are not launched as graphs.
"""

import ctypes
import sys

import numpy as np

from shiftadd_tvm.runtime import native
from shiftadd_tvm.runtime.engine import Engine, Sampling, Session, decode


class Graphs(ctypes.Structure):
    """What the emulated driver says of graphs (`cuda_driver.cc`)."""

    _fields_ = (("recording", ctypes.c_void_p), ("launched", ctypes.c_int))


def launched() -> int:
    """Return how many graphs were launched."""
    return int(Graphs.in_dll(ctypes.CDLL("libcuda.so.1"), "emulated_graphs").launched)


def fresh(engine: Engine, tokens: list[int], begun: int) -> np.ndarray:
    """Return the logits after `tokens`, the first of them by prefill, which rounds otherwise."""
    session = engine.session()
    session.prefill(tokens[:begun])
    *_, logits = (session.decode(token) for token in tokens[begun:])
    return logits.copy()


def check(
    found: np.ndarray, engine: Engine, tokens: list[int], session: Session, begun: int
) -> None:
    """Compare the logits of a sequence, and the token that the GPU draws of them."""
    assert session.tokens == tokens
    expected = fresh(engine, tokens, begun)
    np.testing.assert_array_equal(found, expected)
    assert session.sample(Sampling(), 0) == expected.argmax()


def main(path: str, sequences: str = "2") -> None:
    """Check what sequences share, how steps are launched, and a batch of so many sequences."""
    check_shared(Engine(path, sequences=3))
    check_graphs(Engine(path, sequences=4))
    check_batch(Engine(path, sequences=int(sequences) + 1), int(sequences))
    print("equal")


def check_batch(engine: Engine, count: int) -> None:
    """A batch gives each of its sequences the logits that it has alone."""
    prompts = [[5, 9, 2 + i, *range(3, 3 + i)] for i in range(count)]
    sessions = [begun(engine, prompt) for prompt in prompts]
    decode(sessions, [4 + i for i in range(count)])
    for session, prompt in zip(sessions, prompts, strict=True):
        check(session.logits(), engine, session.tokens, session, len(prompt))


def check_shared(engine: Engine) -> None:
    """Share a page that is partly full, and write to it from both sides."""
    prompt = [5, 9, 2, 7, 11]
    first = engine.session()
    first.prefill(prompt)
    second = first.fork()
    check(first.decode(3), engine, [*prompt, 3], first, 5)
    check(second.decode(8), engine, [*prompt, 8], second, 5)
    check(first.decode(4), engine, [*prompt, 3, 4], first, 5)
    second.truncate(3)
    check(second.decode(6), engine, [*prompt[:3], 6], second, 3)
    ids = np.array([5, 9, 2], np.int32)
    (rows,) = engine.call("embed", ids)
    (again,) = engine.call("embed", ids[::-1].copy())
    np.testing.assert_array_equal(rows, again[::-1])


def check_graphs(engine: Engine) -> None:
    """A model's first step is captured, later ones are launched, by batch; each keeps its own logits."""
    first, second = (begun(engine, prompt) for prompt in ([5, 9, 2, 7], [2, 3, 4, 1]))
    before = launched()
    native.call("decode", first.handle, 3)  # no logits are read yet
    assert launched() == before
    native.call("decode", second.handle, 8)
    assert launched() == before + 1
    for session in (first, second):
        check(session.logits(), engine, session.tokens, session, 4)
    for tokens in ([4, 6], [1, 7]):
        decode((first, second), tokens)
    for session in (first, second):
        check(session.logits(), engine, session.tokens, session, 4)
    engine.session().prefill(list(range(3, 30)))  # other functions use memory in between
    check(first.decode(5), engine, first.tokens, first, 4)


def begun(engine: Engine, prompt: list[int]) -> Session:
    """Return a sequence that holds a prompt."""
    session = engine.session()
    session.prefill(prompt)
    return session


if __name__ == "__main__":
    main(*sys.argv[1:])
