"""The sections of a report on operations and energy: tables, bars, and what they leave out."""

import dataclasses

from shiftadd_tvm import energy, operation_counts, report_html, report_plots
from shiftadd_tvm.console import size
from shiftadd_tvm.energy import Estimate
from shiftadd_tvm.operation_counts import LEFT, Count
from shiftadd_tvm.report_data import Report, Work
from shiftadd_tvm.report_html import paragraph

_COLUMNS = {
    "lookups": "look-ups",
    "whole_adds": "whole additions",
    "adds": "float additions",
    "shifts": "shifts",
    "flips": "sign flips",
    "multiplies": "multiplications",
    "functions": "functions",
}
_COUNTS = (
    "One token at position {positions}. A look-up finds the sum of 4 inputs in a table. Whole additions "
    "are of integers, such as sums of table entries; a shift is an integer addition to the exponent of "
    "a float; functions are exponentials, divisions, roots, cosines and sines. The first four rows are "
    "the quantized linears, which multiply nothing."
)
_FORMULAS = (
    "For K inputs in G = ⌈K / 4⌉ tables, N outputs, P planes, and t powers of two in a scale:",
    "Rotation in blocks of B: K · log₂ B additions, K shifts, K sign flips.",
    "Scales: columns t K shifts and (t − 1) K additions; planes t N P and (t − 1) N P; rows t N and "
    "(t − 1) N; planes are summed by N (P − 1) additions; the activation's exponent is N shifts.",
    "Tables: K shifts and K − 1 whole additions bring activations to whole numbers and sum their sizes; "
    "each table takes 18 whole additions, once for all linears that read the activation.",
    "Look-ups: N P G, and N P (G − 1) + 2 N P whole additions.",
    "docs/report.md has the rest: attention, norms, head, and other formats of scales.",
)
_ENERGY = (
    "An estimate, not a measurement: operations times published energies of arithmetic units in 45 nm "
    "CMOS. ShiftAddLLM publishes two sets of constants that disagree, one in Table 1 of the paper, one "
    "in its code; here are both. Functions, sign flips, registers, caches and control count nothing; "
    "a look-up counts as the published one, whose table is 16 times as large."
)
_LEFT = (
    "“as built” is what these kernels do: what is not quantized computes in float32. “rest in FP16” has "
    "the same operations there in FP16, as the FP16 model has them, so that only the linears differ."
)
_READING = (
    "Reading weights costs more than computing with them: at 200 pJ for 16 bits of DRAM (the constant in "
    "ShiftAddLLM's code) a token reads {ours} ({energy}) here, {dense} ({dense_energy}) in FP16."
)
_CONSTANTS = (
    ("multiply32", "FP32 multiplication"),
    ("add32", "FP32 addition"),
    ("multiply16", "FP16 multiplication"),
    ("add16", "FP16 addition"),
    ("whole_add", "whole addition"),
    ("shift", "shift"),
    ("lookup", "look-up"),
)
_PARTS = (("linears", "quantized linears"), ("head", "head"), ("attention", "attention"))
_REST = ("rest", "norms, gate, embedding, residuals")


def tiles(report: Report) -> list[tuple[str, str]]:
    """Return (value, name) of what is said first of operations."""
    if report.work is None:
        return []
    ratios = [e.baseline / e.linears for e in report.work.estimates().values()]
    low, high = min(ratios), max(ratios)
    return [
        (
            f"{low:.1f}–{high:.1f} ×",
            "less arithmetic energy in the quantized linears than FP16, by two published sets",
        )
    ]


def sections(report: Report) -> list[tuple[str, str]]:
    """Return (title, HTML) of the sections; none where operations cannot be counted."""
    if report.work is None:
        return []
    return [
        ("Operations of one decoded token", _operations(report.work)),
        ("Energy of one decoded token", _energy(report.work)),
    ]


def _operations(work: Work) -> str:
    rows = [_row(part, count) for part, count in work.parts.items()]
    rows.append(_row("all", operation_counts.total(work.parts.values())))
    rows.append(_row("the same linears in FP16", work.baseline))
    formulas = "".join(map(paragraph, _FORMULAS))
    return (
        paragraph(_COUNTS.format(positions=work.positions))
        + report_html.table(["part", *_COLUMNS.values()], rows, "sticky")
        + f"<details><summary>How they are counted</summary>{formulas}</details>"
    )


def _row(name: str, count: Count) -> list[str]:
    numbers = dataclasses.asdict(count)
    cells = (report_html.cell(_short(numbers[key]), title=f"{numbers[key]:,}") for key in _COLUMNS)
    return [name, *cells]


def _short(number: int) -> str:
    """Return a count for people: 26.5 M."""
    if not number:
        return "–"
    for unit, factor in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= factor:
            found = number / factor
            return f"{found:.3g} {unit}" if found < 999.5 else f"{found:.0f} {unit}"
    return str(number)


def _energy(work: Work) -> str:
    estimates = work.estimates()
    bars = report_plots.bars([bar for name, one in estimates.items() for bar in _bars(name, one)])
    names = [*_PARTS, _REST]
    reading = _READING.format(
        ours=size(work.read_bytes),
        energy=_joules(energy.reading(work.read_bytes)),
        dense=size(work.baseline_bytes),
        dense_energy=_joules(energy.reading(work.baseline_bytes)),
    )
    return "".join(
        [
            paragraph(_ENERGY),
            paragraph(_LEFT),
            report_html.legend(names),
            bars,
            _table(estimates),
            paragraph(reading),
            f"<details><summary>The constants, in picojoules</summary>{_constants()}</details>",
        ]
    )


def _bars(name: str, one: Estimate) -> list[tuple[str, dict[str, float], str]]:
    variants = (
        ("as built", one.linears, one.left, one.built()),
        ("rest in FP16", one.linears, one.left16, one.mixed()),
        ("all in FP16", one.baseline, one.left16, one.dense()),
    )
    return [
        (f"{name}: {variant}", _split(linears, left), _joules(whole))
        for variant, linears, left, whole in variants
    ]


def _split(linears: float, left: dict[str, float]) -> dict[str, float]:
    kept = {"linears": linears, "head": left["head"], "attention": left["attention"]}
    return kept | {"rest": sum(left[part] for part in LEFT if part not in kept)}


def _table(estimates: dict[str, Estimate]) -> str:
    head = ["constants: what", *(name for _, name in _PARTS), _REST[1], "all"]
    rows = [
        [label, *map(_joules, parts.values()), whole]
        for name, one in estimates.items()
        for label, parts, whole in _bars(name, one)
    ]
    return report_html.table(head, rows, "sticky")


def _constants() -> str:
    rows = [
        [text, *(f"{getattr(constants, key):g}" for constants in energy.SETS)]
        for key, text in _CONSTANTS
    ]
    sources = "".join(paragraph(f"{c.name}: {c.source}") for c in energy.SETS)
    return report_html.table(["operation", *(c.name for c in energy.SETS)], rows) + sources


def _joules(picojoules: float) -> str:
    """Return an energy for people."""
    for unit, factor in (("J", 1e12), ("mJ", 1e9), ("µJ", 1e6), ("nJ", 1e3)):
        if picojoules >= factor:
            return f"{picojoules / factor:.3g} {unit}"
    return f"{picojoules:.3g} pJ"
