"""``dynamics evaluate``: the rounds' measurements, and AURORA-BENCH."""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from dynamics.cli.aurora_bench import aurora_bench
from dynamics.cli.shared import Run, console, open_run
from dynamics.core.console import ProgressView, print_whole
from dynamics.core.errors import UserError


class _RunFirst(TyperGroup):
    """Command group that reads a first word that names no command as the RUN of ``run``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put ``run`` in front where no command is named."""
        if args and args[0] not in (*self.commands, "-h", "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


evaluate = typer.Typer(
    cls=_RunFirst,
    help="Show what was measured: dynamics evaluate RUN [--controls], dynamics evaluate "
    "aurora-bench --data DIR --model RUN. A RUN folder that is called like a command: ./NAME.",
    no_args_is_help=True,
)
evaluate.command("aurora-bench")(aurora_bench)


@evaluate.command("run")
def evaluate_run(
    run: Run,
    controls: Annotated[
        bool,
        typer.Option(
            help="Also train and measure the controls: the labelled set only and, where the "
            "pool's truth is known, true labels."
        ),
    ] = False,
) -> None:
    """Show what the rounds measured; with --controls, what they gained over the labels alone."""
    from dynamics.report.table import control_line, control_table, round_table

    folder = open_run(run)
    cfg = folder.config()
    reports = folder.reports(cfg.rounds)
    if not reports:
        raise UserError(f"{run} has no finished round yet; run dynamics bootstrap first")
    if controls:
        from dynamics.evaluation.controls import run_controls
        from dynamics.pipeline.prepare import prepared

        with ProgressView(console) as progress:
            result = run_controls(
                cfg, folder.root, prepared(folder), reports[-1].round_id, progress=progress
            )
        print_whole(console, control_table(result))
        console.print(control_line(result))
        return
    seconds = {report.round_id: sum(folder.timings(report.round_id).values()) for report in reports}
    print_whole(console, round_table(reports, seconds))
