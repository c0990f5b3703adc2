"""``dynamics bootstrap``: the loop on Ray, in a process of its own."""

import typer

from dynamics.cli.shared import become


def bootstrap(context: typer.Context) -> None:
    """Run the loop, or go on with it (dynamics bootstrap --help)."""
    become("bootstrap", context.args)
