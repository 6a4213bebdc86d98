"""A report as one HTML file: no script, no network, nothing beside it; every text is escaped."""

from collections.abc import Mapping
from html import escape

from shiftadd_tvm import __version__, report_plots, report_work
from shiftadd_tvm.console import size
from shiftadd_tvm.report_data import Layer, Report
from shiftadd_tvm.report_html import cell, legend, paragraph, section, table
from shiftadd_tvm.report_style import STYLE

MARK = b"<!DOCTYPE html><!-- shiftadd-tvm report -->"  # by which a report is known again
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_ERRORS = (
    "Relative squared errors by block. Weight error: of the weights themselves, |W − Ŵ|² / |W|². "
    "Output error: of what a linear computes on the calibration data, |X (W − Ŵ)ᵀ|² / |X Wᵀ|², which "
    "a calibrated method makes small. Both are of the codes, before scales are tuned end to end."
)
_LOSSES = (
    "The divergence of the next token, in nats, if that linear alone had that many bits: measured at "
    "one width on calibration text, scaled by the output error at the others. Bits were chosen so that "
    "the sum over all linears is least within the budget."
)
_BYTES = "Linears that read one activation share its scales and signs, which count for the first of them."


def render(report: Report) -> bytes:
    """Return the page."""
    sections = [
        _header(report),
        _tiles(report),
        section("What this is", _facts(report.facts)),
        _missing(report),
        _bits(report),
        _errors(report),
        _losses(report),
        *(section(title, body) for title, body in report_work.sections(report)),
        _layers(report),
        f"<footer>Made by shiftadd-tvm {escape(__version__)}; docs/report.md says how each figure is "
        "made.</footer>",
    ]
    head = (
        '<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{escape(report.title)}: report</title><style>{STYLE}</style></head>"
    )
    body = "\n".join(part for part in sections if part)
    # names of files may hold what UTF-8 cannot
    return MARK + f"\n{head}<body><main>\n{body}\n</main></body></html>\n".encode(
        "utf-8", "replace"
    )


def _header(report: Report) -> str:
    what = {"packed": "Packed model", "artifact": "Artifact"}[report.kind]
    title = f"<h1>{escape(report.title)}</h1>"
    return f'<header>{title}<div class="soft">{what} of shiftadd-tvm</div></header>'


def _tiles(report: Report) -> str:
    values = [
        (f"{report.nominal_bits:g}", "nominal bits a weight"),
        (f"{report.effective_bits:.3f}", "effective bits: every byte of the linears counted"),
        (size(report.linear_bytes), "quantized linears"),
    ]
    values += report_work.tiles(report)
    pairs = ((escape(value), escape(name)) for value, name in values)
    cells = (f"<div><b>{value}</b><span>{name}</span></div>" for value, name in pairs)
    return f'<div class="tiles">{"".join(cells)}</div>'


def _facts(facts: Mapping[str, str]) -> str:
    pairs = (f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items())
    return f"<dl>{''.join(pairs)}</dl>"


def _missing(report: Report) -> str:
    return section("Please note", "".join(map(paragraph, report.missing)), "note")


def _bits(report: Report) -> str:
    if not report.layers:
        return ""
    used = sorted({layer.bits for layer in report.layers})
    names = legend((f"b{bits}", f"{bits} bit{'s' * (bits > 1)}") for bits in used)
    plot = f'<div class="scroll">{report_plots.heat_map(report)}</div>'
    return section("Bits by block and kind", names + plot)


def _errors(report: Report) -> str:
    plot = report_plots.errors(report)
    names = legend([("weight", "weight error"), ("output", "output error")])
    return section("Errors", paragraph(_ERRORS) + names + plot) if plot else ""


def _losses(report: Report) -> str:
    plot = report_plots.losses(report)
    widths = sorted({bits for layer in report.layers for bits in layer.losses})
    entries = [(f"w{bits}", f"at {bits} bit{'s' * (bits > 1)}") for bits in widths]
    names = legend([*entries, ("ring", "chosen")])
    return section("Sensitivity", paragraph(_LOSSES) + names + plot) if plot else ""


def _layers(report: Report) -> str:
    if not report.layers:
        return ""
    errors = ("weight error", "output error")
    head = ("linear", "outputs × inputs", "bits", *errors, "bytes", "share of loss")
    shares = [report.share(layer) for layer in report.layers]
    largest = max((share for share in shares if share is not None), default=1.0)
    rows = [_row(*pair, largest) for pair in zip(report.layers, shares, strict=True)]
    return section("Every layer", paragraph(_BYTES) + table(head, rows, "sticky"))


def _row(layer: Layer, share: float | None, largest: float) -> list[str]:
    loss = "–"
    if share is not None:
        loss = cell(f"{share:.2%}", css="share", style=f"--part: {share / largest:.0%}")
    return [
        layer.name,
        f"{layer.shape[0]} × {layer.shape[1]}",
        str(layer.bits),
        _number(layer.weight_error),
        _number(layer.output_error),
        f"{layer.nbytes:,}",
        loss,
    ]


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.4f}" if value >= 0.001 or value == 0 else f"{value:.1e}"
