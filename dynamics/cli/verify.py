"""``dynamics verify``: a run's files against their digests."""

import typer

from dynamics.cli.shared import Run, console, open_run


def verify(run: Run) -> None:
    """Compare every file of RUN with its digest, and look for missing ones; status 1 for a problem.

    Not MLflow's own files and not report.html, which is made anew from the others.
    """
    folder = open_run(run)
    from dynamics.pipeline.verify import verify as verify_run

    count, problems = verify_run(folder)
    for problem in problems:
        console.print(problem, markup=False)
    if problems:
        raise typer.Exit(1)
    console.print(f"{count} files and the ledger are sound, and nothing is missing")
