"""``dynamics report``: the page of a run."""

import sys
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from dynamics.cli.shared import Run, console, open_run


def report(
    run: Run,
    show: Annotated[
        bool | None,
        typer.Option("--open/--no-open", help="Open it in a browser; default: in a terminal only."),
    ] = None,
) -> None:
    """Write RUN/report.html again from the stored results, and open it."""
    folder = open_run(run)  # before the slow import: a wrong path fails at once
    from dynamics.report.page import write_page

    page = write_page(folder)
    console.print(f"report: {page}")
    if isinstance(page, Path) and (sys.stdout.isatty() if show is None else show):
        _open(page)


def _open(page: Path) -> None:
    if not webbrowser.open(page.as_uri()):
        console.print("no browser was found; open the file by hand")
