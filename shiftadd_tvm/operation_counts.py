"""What one decoded token costs in operations, counted from shapes; docs/report.md has the formulas.

The counts are those of the operators in docs/operators.md, as they are defined. Conversions,
comparisons and address arithmetic are not counted. `lookup_counts.py` counts the quantized linears;
here is the rest.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

PAGE = 16  # positions after which attention rescales what it has
PARTS = (
    "rotation",
    "scales",
    "tables",
    "look-ups",
    "head",
    "attention",
    "norms",
    "gate",
    "embedding and residuals",
)
LEFT = PARTS[4:]  # what is not quantized


@dataclass(frozen=True)
class Count:
    """Operations of one token by kind."""

    lookups: int = 0
    whole_adds: int = 0  # of whole numbers
    adds: int = 0  # of float32 numbers
    shifts: int = 0  # additions to an exponent
    flips: int = 0  # of a sign
    multiplies: int = 0
    functions: int = 0  # exponentials, divisions, roots, cosines, sines

    def __add__(self, other: "Count") -> "Count":
        """Return the sum of both."""
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Count(*(a + b for a, b in pairs))

    def times(self, factor: int) -> "Count":
        """Return as many operations `factor` times."""
        return Count(*(number * factor for number in dataclasses.astuple(self)))


Parts = dict[str, Count]  # part of PARTS -> its operations


@dataclass(frozen=True)
class Rest:
    """What is not quantized of a decoder."""

    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    heads: int
    kv_heads: int
    head_dim: int
    norms: tuple[int, ...]  # the width of each
    scaled: bool  # an 8-bit embedding and head: one scale a row


def total(parts: Iterable[Count]) -> Count:
    """Return the sum of all."""
    return sum(parts, Count())


def merged(many: Iterable[Mapping[str, Count]]) -> Parts:
    """Return the sum by part."""
    found = dict.fromkeys(PARTS, Count())
    for parts in many:
        for name, count in parts.items():
            found[name] += count
    return found


def rest(model: Rest, positions: int) -> Parts:
    """Return what is not quantized, for a token that attends to `positions`, itself included."""
    head = model.vocabulary * model.hidden
    scales = model.vocabulary if model.scaled else 0
    embedding = Count(multiplies=model.hidden if model.scaled else 0)
    gate = Count(multiplies=1, adds=1, functions=2).times(model.layers * model.intermediate)
    return {
        "head": Count(multiplies=head + scales, adds=head - model.vocabulary),
        "attention": _attention(model, positions),
        "norms": total(_norm(width) for width in model.norms),
        "gate": gate,
        "embedding and residuals": embedding + Count(adds=2 * model.layers * model.hidden),
    }


def _norm(width: int) -> Count:
    """Return weight · x · (1 / sqrt(mean + epsilon)): squares, their mean, and two products."""
    return Count(multiplies=3 * width + 1, adds=width, functions=2)


def _attention(model: Rest, positions: int) -> Count:
    size, heads = model.head_dim, model.heads
    angles = Count(multiplies=size // 2, functions=size)
    rotary = Count(multiplies=2, adds=1).times(size * (heads + model.kv_heads))
    products = Count(multiplies=2, adds=2).times(size * positions)  # with keys, then values
    softmax = Count(multiplies=1, adds=2, functions=1).times(positions)
    pages = Count(multiplies=size + 1, adds=1, functions=1).times(-(-positions // PAGE))
    ending = Count(functions=size)  # divisions
    a_head = products + softmax + pages + ending
    return angles + (rotary + a_head.times(heads)).times(model.layers)


def dense(outputs: int, inputs: int) -> Count:
    """Return a product of a vector and a dense matrix, a multiplication and an addition a weight."""
    return Count(multiplies=outputs * inputs, adds=outputs * inputs)
