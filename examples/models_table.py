"""Write docs/models.md: what of each model family is proven, out of the results of its tests.

    pytest tests/test_families.py tests/test_encoders.py --junitxml=families.xml
    python examples/models_table.py families.xml

The numbers are those that the tests recorded. A family of which nothing was tested keeps its row; of one
that was, what was not proven stays empty.
"""

import argparse
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from shiftadd_tvm import encoder_families, families

PAGE = Path(__file__).resolve().parent.parent / "docs" / "models.md"
BEGIN, END = "<!-- table: make models, {} -->", "<!-- end -->"

Properties = dict[str, str]


@dataclass(frozen=True)
class Column:
    """What a column shows of the results of one test."""

    test: str
    target: str = ""  # the target family of the presets that count
    activations: str = ""  # which of the test's, where it takes several
    shown: str = "error"  # the property that the cell shows


DECODERS = {
    "parity, prefill": Column("test_prefill_equals_transformers"),
    "parity, decode": Column("test_decode_equals_transformers"),
    "quantized": Column("test_quantized_decode_is_close"),
    "x86": Column("test_quantized_decode_is_close", "x86", shown="preset"),
    "cuda": Column("test_code_is_generated", "cuda", shown="preset"),
    "arm": Column("test_code_is_generated", "arm", shown="preset"),
}
COMPILED = "test_a_compiled_encoder_equals_transformers"
ENCODERS = {
    "parity": Column(COMPILED, activations="float32"),
    "quantized": Column(COMPILED, activations="int16"),
    "x86": Column(COMPILED, "x86", "int16", shown="preset"),
    "cuda": Column("test_a_gpu_is_refused", "cuda"),
    "arm": Column("test_code_is_generated", "arm", shown="preset"),
}


def read(paths: Iterable[Path]) -> list[Properties]:
    """Return the properties of each test that passed, its name among them as `test`."""
    found = []
    for path in paths:
        for case in ET.parse(path).iter("testcase"):
            if any(case.find(kind) is not None for kind in ("failure", "error", "skipped")):
                continue
            properties = {p.get("name", ""): p.get("value", "") for p in case.iter("property")}
            found.append({**properties, "test": case.get("name", "").partition("[")[0]})
    return found


def table(
    found: list[Properties],
    listing: list[dict[str, str]],
    columns: dict[str, Column],
    kept: dict[str, str],
) -> str:
    """Return the table as Markdown, a family a line; `kept` are the lines that stand there."""
    head = ["model_type", "models", *columns]
    lines = [_line(head), _line(["---"] * len(head))]
    for family in listing:
        name = family["name"]
        results = [one for one in found if one.get("family") == name]
        cells = [_cell(results, column) for column in columns.values()]
        line = _line([f"`{name}`", family["models"], *cells])
        lines.append(line if results else kept.get(name, line))
    return "\n".join(lines)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(results: list[Properties], column: Column) -> str:
    shown = {
        one[column.shown]
        for one in results
        if one["test"] == column.test
        and one.get("preset", "").startswith(column.target)
        and column.activations in ("", one.get("activations"))
    }
    code = column.shown == "preset"
    return ", ".join(f"`{value}`" if code else value for value in sorted(shown))


def replaced(
    text: str, kind: str, found: list[Properties], listing: list[dict[str, str]]
) -> str:
    """Return the page with the table of one kind of families made anew."""
    begin = BEGIN.format(kind)
    before, _, rest = text.partition(begin)
    old, _, after = rest.partition(END)
    kept = {match[2]: match[1] for match in re.finditer(r"^(\| `(\w+)` \|.*)$", old, re.MULTILINE)}
    made = table(found, listing, DECODERS if kind == "decoders" else ENCODERS, kept)
    return f"{before}{begin}\n\n{made}\n\n{END}{after}"


def main() -> None:
    """Replace the tables of docs/models.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+", help="pytest's JUnit XML")
    found = read(parser.parse_args().results)
    text = PAGE.read_text(encoding="utf-8")
    text = replaced(text, "decoders", found, families.listing())
    text = replaced(text, "encoders", found, encoder_families.listing())
    PAGE.write_text(text, encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
