"""Write docs/models.md: what of each model family is proven, out of the results of its tests.

    pytest tests/test_families.py --junitxml=families.xml
    python examples/models_table.py families.xml

The numbers are those that the tests recorded; a family or a target that was not tested stays empty.
"""

import argparse
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from pathlib import Path

from shiftadd_tvm import families

PAGE = Path(__file__).resolve().parent.parent / "docs" / "models.md"
BEGIN, END = "<!-- table: make models -->", "<!-- end -->"
COLUMNS = {  # what the table shows -> test, and the target family that its preset must be of
    "parity, prefill": ("test_prefill_equals_transformers", None),
    "parity, decode": ("test_decode_equals_transformers", None),
    "quantized": ("test_quantized_decode_is_close", None),
    "x86": ("test_quantized_decode_is_close", "x86"),
    "cuda": ("test_code_is_generated", "cuda"),
    "arm": ("test_code_is_generated", "arm"),
}
SHOWN = "error"  # the property that holds a number


def read(paths: Iterable[Path]) -> dict[tuple[str, str, str], dict[str, str]]:
    """Return the properties of each test that passed by (test, family, preset)."""
    found = {}
    for path in paths:
        for case in ET.parse(path).iter("testcase"):
            if any(case.find(kind) is not None for kind in ("failure", "error", "skipped")):
                continue
            properties = {p.get("name", ""): p.get("value", "") for p in case.iter("property")}
            test = case.get("name", "").partition("[")[0]
            key = test, properties.get("family", ""), properties.get("preset", "")
            found[key] = properties
    return found


def table(found: dict[tuple[str, str, str], dict[str, str]]) -> str:
    """Return the table as Markdown, a family a line."""
    head = ["model_type", "models", *COLUMNS]
    rows = [head, ["---"] * len(head)]
    for family in families.listing():
        name = family["name"]
        cells = [_cell(found, name, *column) for column in COLUMNS.values()]
        rows.append([f"`{name}`", family["models"], *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(
    found: dict[tuple[str, str, str], dict[str, str]], family: str, test: str, target: str | None
) -> str:
    hits = {
        key[2]: properties
        for key, properties in found.items()
        if key[:2] == (test, family) and (target is None or key[2].startswith(target))
    }
    if not hits:
        return ""
    if target is not None:
        return ", ".join(f"`{preset}`" for preset in sorted(hits))
    return next(iter(hits.values()))[SHOWN]


def main() -> None:
    """Replace the table of docs/models.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+", help="pytest's JUnit XML")
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    made = table(read(parser.parse_args().results))
    PAGE.write_text(f"{before}{BEGIN}\n\n{made}\n\n{END}{after}", encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
