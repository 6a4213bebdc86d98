"""Run in a child with the emulated GPU: what sequences of one model share, and what each has alone.

    python cuda_sessions.py ARTIFACT

ends with an error where a fork, a sequence that was cut, or a function called by its name gives other
numbers than a sequence of its own.
"""

import sys

import numpy as np

from shiftadd_tvm.runtime.engine import Engine, Sampling, Session


def fresh(engine: Engine, tokens: list[int]) -> np.ndarray:
    """Return the logits after `tokens`, all but the last by prefill."""
    session = engine.session()
    session.prefill(tokens[:-1])
    return session.decode(tokens[-1]).copy()


def check(found: np.ndarray, engine: Engine, tokens: list[int], session: Session) -> None:
    """Compare the logits of a sequence, and the token that the GPU draws of them."""
    assert session.tokens == tokens
    expected = fresh(engine, tokens)
    np.testing.assert_array_equal(found, expected)
    assert session.sample(Sampling(), 0) == expected.argmax()


def main(path: str) -> None:
    """Share a page that is partly full, and write to it from both sides."""
    engine = Engine(path, sequences=3)
    prompt = [5, 9, 2, 7, 11]
    first = engine.session()
    first.prefill(prompt)
    second = first.fork()
    check(first.decode(3), engine, [*prompt, 3], first)
    check(second.decode(8), engine, [*prompt, 8], second)
    check(first.decode(4), engine, [*prompt, 3, 4], first)
    second.truncate(3)
    check(second.decode(6), engine, [*prompt[:3], 6], second)
    ids = np.array([5, 9, 2], np.int32)
    (rows,) = engine.call("embed", ids)
    (again,) = engine.call("embed", ids[::-1].copy())
    np.testing.assert_array_equal(rows, again[::-1])
    print("equal")


if __name__ == "__main__":
    main(sys.argv[1])
