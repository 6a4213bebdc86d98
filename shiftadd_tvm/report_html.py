"""Pieces of HTML that the sections of a report are made of; every text is escaped here."""

from collections.abc import Iterable, Sequence
from html import escape


class Markup(str):
    """A string that is HTML already."""


def paragraph(text: str) -> str:
    """Return a paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def section(title: str, body: str, css: str = "") -> str:
    """Return a section, nothing where the body is empty."""
    return f'<section class="{css}"><h2>{escape(title)}</h2>{body}</section>' if body else ""


def legend(entries: Iterable[tuple[str, str]]) -> str:
    """Return a legend of (CSS class, name)."""
    items = (f'<li><i class="{css}"></i>{escape(name)}</li>' for css, name in entries)
    return f'<ul class="legend">{"".join(items)}</ul>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], css: str = "") -> str:
    """Return a table that scrolls by itself; cells that are not `Markup` are escaped."""
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    lines = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table class="{css}"><thead><tr>{cells}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def cell(text: str, *, css: str = "", style: str = "", title: str = "") -> Markup:
    """Return a table's cell with attributes."""
    pairs = {"class": css, "style": style, "title": title}
    fields = "".join(f' {key}="{escape(value)}"' for key, value in pairs.items() if value)
    return Markup(f"<td{fields}>{escape(text)}</td>")


def _cell(text: str) -> str:
    return text if isinstance(text, Markup) else f"<td>{escape(text)}</td>"
