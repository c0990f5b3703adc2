"""``dynamics ledger``: the append-only store of pseudo-labels."""

import typer

from dynamics.cli.shared import Run, console, open_run

ledger = typer.Typer(help="The append-only store of pseudo-labels.", no_args_is_help=True)


@ledger.command("verify")
def ledger_verify(run: Run) -> None:
    """Check RUN's committed shards: digests, a label for every pair; status 1 for a problem."""
    from dynamics.storage.ledger import Ledger

    folder = open_run(run)
    folder.config()
    store = Ledger(folder.ledger)
    problems = store.verify(folder.pool)
    for problem in problems:
        console.print(problem, markup=False)
    if problems:
        raise typer.Exit(1)
    console.print(f"{len(store.rounds())} rounds, every shard is sound")
