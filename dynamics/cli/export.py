"""``dynamics export``: a round in a format that others read."""

from pathlib import Path
from typing import Annotated

import typer

from dynamics.cli.shared import Run, console, local, named, open_run
from dynamics.core.console import ProgressView


def export(
    run: Run,
    form: Annotated[
        str, named("dynamics.exports:EXPORTS", "Format of the labels, or adapters", "--as")
    ],
    out: Annotated[
        Path, typer.Option(help="New folder; nothing is ever overwritten.", callback=local)
    ],
    round_id: Annotated[
        int | None, typer.Option("--round", help="Default: the last promoted one.")
    ] = None,
) -> None:
    """Write a round's accepted labels, or its adapters, in a format that others read."""
    from dynamics.exports import export_run

    with ProgressView(console) as progress:
        done = export_run(open_run(run), form, out, round_id, progress)
    console.print(f"{out}: {done}")
