"""``dynamics report``: the page of a run."""

import sys
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from dynamics.cli.shared import PlaceName, Run, console, open_run
from dynamics.core.places import as_place


def report(
    run: Run,
    other: Annotated[
        PlaceName | None,
        typer.Argument(
            help="A second run: writes RUN/versus-NAME.html, both side by side.",
            metavar="OTHER",
            parser=as_place,
        ),
    ] = None,
    show: Annotated[
        bool | None,
        typer.Option("--open/--no-open", help="Open it in a browser; default: in a terminal only."),
    ] = None,
) -> None:
    """Write RUN/report.html again, or a page with two runs side by side, and open it."""
    folder = open_run(run)  # before the slow import: a wrong path fails at once
    from dynamics.report.page import write_page
    from dynamics.report.versus import write_versus

    page = write_page(folder) if other is None else write_versus(folder, open_run(other))
    console.print(f"report: {page}")
    if isinstance(page, Path) and (sys.stdout.isatty() if show is None else show):
        _open(page)


def _open(page: Path) -> None:
    if not webbrowser.open(page.as_uri()):
        console.print("no browser was found; open the file by hand")
