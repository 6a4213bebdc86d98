"""docs/operators.md says what the code says."""

import importlib
import pkgutil
import re
from pathlib import Path

import test_lut

from shiftadd_tvm import backend, ops, verification
from shiftadd_tvm.ops import lut, lut_float, planes
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


def test_row_blocks_and_lanes_are_those_of_the_presets() -> None:
    stated = re.findall(r"^\| `([\w-]+)` \| (\d+) \| (\d+) \|$", TEXT, re.MULTILINE)
    presets = backend.presets().values()
    assert stated == [(preset.name, str(preset.rows), str(preset.lanes)) for preset in presets]
    for preset in presets:
        assert preset.order == f"{'fragments' if preset.device else 'bytes'}-rows{preset.rows}"


def test_the_formats_are_those_of_the_code() -> None:
    """Bits, digits, the bound of what is finite, the largest sums, and the errors that are tested."""
    for form in lut.FORMATS.values():
        (row,) = re.findall(rf"^\| `{form.name}`.*$", TEXT, re.MULTILINE)
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[1] == f"{form.bits} and the sign"
        assert cells[2].startswith(f"4 · {2**form.bits - 1}: {sum(form.digit_bits)} bits")
        assert cells[3] == " and ".join(f"{bits} bits" for bits in form.digit_bits)
        assert cells[4] == f"2^{form.fields[1] - 126}"
        assert float(cells[5]) == test_lut.ERRORS[form.name]
        largest = min(2 ** form.digit_bits[0] - 1, 4 * (2**form.bits - 1))
        total = planes.CHUNK * 2 * largest
        assert f"{planes.CHUNK} · 2 · {largest} = {total} for `{form.name}`" in TEXT
    (row,) = re.findall(rf"^\| `{lut_float.NAME}`.*$", TEXT, re.MULTILINE)
    assert float(row.strip("|").split("|")[5]) == test_lut.ERRORS[lut_float.NAME]


def test_the_gates_tolerances_are_those_of_the_code() -> None:
    text = (Path(__file__).parent.parent / "docs" / "artifact.md").read_text(encoding="utf-8")
    stated = {"float32": "5·10⁻⁴", "int16": "3·10⁻²", "int8": "0.3"}
    stated |= {"fixed16": "10⁻²", "shuffle16": "2·10⁻³", "fixed24": "5·10⁻⁴", "bytes16": "10⁻²"}
    relative = {"float32": 5e-4, "int16": 3e-2, "int8": 0.3}
    relative |= {"fixed16": 1e-2, "shuffle16": 2e-3, "fixed24": 5e-4, "bytes16": 1e-2}
    assert relative == verification.RELATIVE
    for name, tolerance in stated.items():
        assert f"| `{name}` | {tolerance} |" in text
