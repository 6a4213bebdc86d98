"""The memory that `quantize` says it needs, and its refusal where there is less."""

import dataclasses
import math

import pytest

from shiftadd_tvm import cpu, families, quantize_memory, shapes
from shiftadd_tvm.errors import UsageError
from shiftadd_tvm.settings import QuantizeSettings

DECODER = families.read_config(shapes.config("llama-2-7b"))
TUNED = QuantizeSettings(bits=3, method="shiftadd", calibration_text="text.txt")
FAST = dataclasses.replace(TUNED, effort="fast")


def test_coding_a_7b_model_fits_where_tuning_does_not() -> None:
    assert quantize_memory.peak(DECODER, FAST) < 24e9 < quantize_memory.peak(DECODER, TUNED)
    plain = QuantizeSettings(bits=3)
    assert quantize_memory.peak(DECODER, plain) < quantize_memory.peak(DECODER, FAST)


def test_a_model_that_writes_its_text_lies_in_memory_whole() -> None:
    own = dataclasses.replace(FAST, calibration_text=None)
    weights = 4 * sum(math.prod(shape) for shape in DECODER.linear_shapes().values()) * 32
    assert quantize_memory.peak(DECODER, own) > weights > 24e9
    assert quantize_memory.peak(DECODER, dataclasses.replace(FAST, own_text=0.5)) > weights
    with pytest.raises(UsageError, match="24 GB, .* or give a text by --calib, which"):
        quantize_memory.check(DECODER, own, 24)


def test_what_is_spilled_needs_no_memory() -> None:
    tokens = dataclasses.replace(FAST, calibration_tokens=2 * 10**6)
    needed = quantize_memory.peak(DECODER, tokens)
    spilled = quantize_memory.peak(DECODER, tokens, spill=True)
    assert needed - spilled > 10**6 * DECODER.hidden * 4 / 2
    with pytest.raises(UsageError, match="or keep what passes between blocks on disk by --spill.$"):
        quantize_memory.check(DECODER, tokens, needed / 1e9 - 1)
    assert quantize_memory.check(DECODER, tokens, needed / 1e9 - 1, spill=True) == spilled


def test_refusal_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UsageError, match="^--max-memory is 8 GB, .* allow more, or .*--effort fast"
    ):
        quantize_memory.check(DECODER, TUNED, 8)
    monkeypatch.setattr(cpu, "memory", lambda: 16_000_000_000)
    with pytest.raises(UsageError, match="^this machine has 16 GB, .*--effort fast.$"):
        quantize_memory.check(DECODER, TUNED)
    monkeypatch.setattr(cpu, "memory", lambda: 1_000_000_000)
    with pytest.raises(UsageError, match="use a machine with more memory.$"):
        quantize_memory.check(DECODER, FAST)


def test_the_machine_has_memory() -> None:
    assert cpu.memory() > 1 << 28
