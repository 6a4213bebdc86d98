"""docs/operators.md says what the code says."""

import importlib
import pkgutil
import re
from pathlib import Path

from shiftadd_tvm import backend, ops
from shiftadd_tvm.ops.shift import TEST_VECTORS

TEXT = (Path(__file__).parent.parent / "docs" / "operators.md").read_text(encoding="utf-8")


def test_the_shift_vectors_are_those_of_the_code() -> None:
    table = TEXT.partition("<!-- shift vectors")[2].partition("<!-- end -->")[0]
    rows = re.findall(r"^\| `0x(\w{8})` \| (-?\d+) \| `0x(\w{8})` \|$", table, re.MULTILINE)
    found = tuple((int(x, 16), int(e), int(y, 16)) for x, e, y in rows)
    assert found == TEST_VECTORS


def test_every_operator_is_described() -> None:
    for module in pkgutil.iter_modules(ops.__path__):
        for name in importlib.import_module(f"{ops.__name__}.{module.name}").REFERENCES:
            assert f"`{name}`" in TEXT, name


def test_lanes_are_those_of_the_presets() -> None:
    for preset in backend.presets().values():
        assert f"`{preset.name}`" in TEXT
        assert preset.order == f"u32-lanes{preset.lanes}"
    lanes = {name: preset.lanes for name, preset in backend.presets().items()}
    assert lanes == {"x86-avx512": 16, "x86-avx2": 8, "x86-64": 8}, "update docs/operators.md"
