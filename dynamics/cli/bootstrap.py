"""``dynamics bootstrap``: the loop on Ray, in a process of its own."""

import typer

from dynamics.cli.shared import run_module


def bootstrap(context: typer.Context) -> None:
    """Run or resume the loop; the arguments are those of ray_jobs/bootstrap.py (try --help)."""
    run_module("ray_jobs.bootstrap", context.args)
