"""The verb `report`: parse, gather, write, print."""

from pathlib import Path
from typing import Annotated

import typer

from shiftadd_tvm import options
from shiftadd_tvm.console import Console
from shiftadd_tvm.interruption import leaving

Target = Annotated[
    str, typer.Argument(metavar="PATH", help="Packed model or artifact.", show_default=False)
]
Output = Annotated[
    Path | None,
    typer.Option("-o", "--output", metavar="FILE", help="The page; default: PATH-report.html."),
]


def report(
    path: Target,
    output: Output = None,
    force: options.Force = False,
    json: options.Json = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Write a page on a model: bits, errors, bytes, operations and energy.

    One HTML file that needs nothing beside it, no network and no script.
    """
    from shiftadd_tvm import files, report_page
    from shiftadd_tvm import report as gathering

    console = Console(json=json, quiet=quiet, verbose=verbose)
    place = output or _beside(Path(path))
    with leaving("nothing was written"):
        files.refuse_existing_file(place, report_page.MARK, force)
        found = gathering.gather(path)
        files.write_file(place, report_page.render(found), report_page.MARK, force=force)
    fields = {**found.to_dict(), "output": str(place)}
    console.result(fields, f"report {place}: open it in a browser")


def _beside(path: Path) -> Path:
    """Return where the page of `path` goes when nobody says: beside it, not into it."""
    whole = path.resolve()
    named = whole if path.name in ("", "..") else path
    return named.parent / f"{named.name}-report.html"
