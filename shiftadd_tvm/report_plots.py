"""The pictures of a report as inline SVG, coloured by the classes of `report_style.py`."""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from shiftadd_tvm.report_data import Layer, Report

Series = Mapping[int, float]  # block -> value
Lines = Sequence[tuple[str, str, Series]]  # (CSS class, name, values)

CELL, GAP, LABEL, LINE = 22, 2, 84, 18
WIDTH, HEIGHT = 260, 150  # of a small plot
LEFT, RIGHT, TOP, BOTTOM = 44, 18, 10, 26  # its margins
EVERY = 5  # blocks between two numbers under a heat map


def _element(name: str, content: str = "", **attributes: object) -> str:
    fields = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_text(value))}"'
        for key, value in attributes.items()
    )
    return f"<{name}{fields}>{content}</{name}>"


def _text(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def _svg(width: int, height: int, content: str, label: str, css: str = "") -> str:
    return _element(
        "svg",
        _element("title", escape(label)) + content,
        viewBox=f"0 0 {width} {height}",
        role="img",
        class_=css,
    )


def short(kind: str) -> str:
    """Return the last part of a path inside a block."""
    return kind.rpartition(".")[2]


def kinds(layers: Iterable[Layer]) -> list[str]:
    """Return the paths inside a block, in the order in which they come."""
    return list(dict.fromkeys(layer.kind for layer in layers))


def heat_map(report: Report) -> str:
    """Return the bits of each linear: a row for each kind, a column for each block."""
    rows = {kind: place for place, kind in enumerate(kinds(report.layers))}
    last = max(layer.block for layer in report.layers)
    cells = [_cell(layer, rows[layer.kind]) for layer in report.layers]
    names = [
        _element("text", escape(short(kind)), x=LABEL - 8, y=_middle(place), class_="end")
        for kind, place in rows.items()
    ]
    bottom = len(rows) * CELL + 14
    numbers = [
        _element("text", str(block), x=LABEL + block * CELL + CELL / 2, y=bottom, class_="mid")
        for block in range(0, last + 1, EVERY)
    ]
    width = LABEL + (last + 1) * CELL
    label = "Bits of each linear by block and kind"
    content = "".join([*names, *cells, *numbers])
    # never narrower than it can be read: a narrow page scrolls it
    map_ = _svg(width, bottom + 4, content, label)
    return f'<div style="min-width: {width * 3 // 4}px; max-width: {width}px">{map_}</div>'


def _middle(row: int) -> float:
    return row * CELL + CELL / 2 + 4


def _cell(layer: Layer, row: int) -> str:
    x, size = LABEL + layer.block * CELL, CELL - GAP
    box = _element("rect", x=x, y=row * CELL, width=size, height=size, rx=3)
    number = _element("text", str(layer.bits), x=x + size / 2, y=_middle(row) - 1, class_="mid")
    tip = _element("title", escape(f"{layer.name}: {layer.bits} bits"))
    return _element("g", tip + box + number, class_=f"bits b{layer.bits}")


def errors(report: Report) -> str:
    """Return the weight and output error by block, a plot for each kind; empty where none is known."""
    plots = {}
    for kind in kinds(report.layers):
        members = [layer for layer in report.layers if layer.kind == kind]
        lines = [
            ("weight", "weight error", {m.block: m.weight_error for m in members}),
            ("output", "output error", {m.block: m.output_error for m in members}),
        ]
        plots[kind] = [(css, name, _known(values)) for css, name, values in lines]
    return _panels(plots, {}, "error")


def losses(report: Report) -> str:
    """Return the expected loss by block at each width, a plot for each kind; the chosen one marked."""
    plots, chosen = {}, {}
    for kind in kinds(report.layers):
        members = [layer for layer in report.layers if layer.kind == kind]
        widths = sorted({bits for member in members for bits in member.losses})
        plots[kind] = [
            (f"w{bits}", f"{bits} bits", _known({m.block: m.losses.get(bits) for m in members}))
            for bits in widths
        ]
        chosen[kind] = _known({m.block: m.loss for m in members})
    return _panels(plots, chosen, "expected loss")


def _known(values: Mapping[int, float | None]) -> Series:
    """Return the values that a logarithmic scale can show."""
    return {block: v for block, v in values.items() if v is not None and math.isfinite(v) and v > 0}


def _panels(plots: Mapping[str, Lines], chosen: Mapping[str, Series], what: str) -> str:
    """Return all plots with one scale between them."""
    shown = [v for lines in plots.values() for _, _, series in lines for v in series.values()]
    if not shown:
        return ""
    low, high = math.floor(math.log10(min(shown))), math.ceil(math.log10(max(shown)))
    last = max(block for lines in plots.values() for _, _, series in lines for block in series)
    scale = _Scale(low, max(high, low + 1), last)
    figures = [
        _element("figcaption", escape(kind)) + _plot(scale, lines, chosen.get(kind, {}), kind, what)
        for kind, lines in plots.items()
    ]
    return _element("div", "".join(_element("figure", f) for f in figures), class_="panels")


class _Scale:
    """Blocks to x, values to y by their logarithm between two powers of ten."""

    def __init__(self, low: int, high: int, last: int) -> None:
        self.low, self.high, self.last = low, high, last

    def x(self, block: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (block / self.last if self.last else 0.5)

    def y(self, value: float) -> float:
        part = (math.log10(value) - self.low) / (self.high - self.low)
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - part)

    def axes(self) -> str:
        step = max(1, -(-(self.high - self.low) // 4))
        parts = []
        for power in range(self.low, self.high + 1, step):
            y = self.y(10.0**power)
            parts.append(_element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid"))
            parts.append(_element("text", _power(power), x=LEFT - 6, y=y + 4, class_="end"))
        for block in sorted({0, self.last // 2, self.last}):
            parts.append(_element("text", str(block), x=self.x(block), y=HEIGHT - 8, class_="mid"))
        return "".join(parts)


def _power(power: int) -> str:
    if -3 <= power <= 2:
        return f"{10.0**power:g}"
    return "10" + _element("tspan", str(power).replace("-", "−"), dy=-4, class_="sup")


def _plot(scale: _Scale, lines: Lines, chosen: Series, kind: str, what: str) -> str:
    parts = [scale.axes()]
    for css, name, series in lines:
        points = [(scale.x(block), scale.y(value)) for block, value in sorted(series.items())]
        path = " ".join(f"{_text(x)},{_text(y)}" for x, y in points)
        parts.append(_element("polyline", points=path, class_=f"series {css}"))
        parts += [
            _element(
                "circle",
                _element("title", escape(f"block {block}, {name}: {value:.3g}")),
                cx=scale.x(block),
                cy=scale.y(value),
                r=1.8,
                class_=f"dot {css}",
            )
            for block, value in sorted(series.items())
        ]
    parts += [
        _element("circle", cx=scale.x(block), cy=scale.y(value), r=3.2, class_="chosen")
        for block, value in sorted(chosen.items())
    ]
    return _svg(WIDTH, HEIGHT, "".join(parts), f"{what} of {kind} by block")


def bars(rows: Sequence[tuple[str, Mapping[str, float], str]]) -> str:
    """Return stacked bars: (label, CSS class -> value, text behind the bar), one scale for all."""
    longest = max(sum(parts.values()) for _, parts, _ in rows) or 1.0
    width, bar, room = 380, 14, 62
    drawn = []
    for place, (label, parts, text) in enumerate(rows):
        y, x = place * 44 + 14, 0.0
        drawn.append(_element("text", escape(label), x=0, y=y, class_="name"))
        for css, value in parts.items():
            length = (width - room) * value / longest
            size, tip = max(length - 1.5, 0.0), _element("title", escape(css))
            box = _element("rect", tip, x=x, y=y + 6, width=size, height=bar, class_=f"part {css}")
            drawn.append(box)
            x += length
        drawn.append(_element("text", escape(text), x=x + 5, y=y + 6 + bar - 4))
    return _svg(width, len(rows) * 44 + 2, "".join(drawn), "Energy by part", "bars")
