"""``dynamics serve``: a finished run behind HTTP, in a process of its own."""

import json
from typing import Annotated

import typer

from dynamics.cli.shared import TABLETOP, Run, become, open_run
from dynamics.core.errors import UserError

InProcess = Annotated[
    bool, typer.Option("--in-process", help="Serve from this process alone, without Ray.")
]


def serve(context: typer.Context, run: Run, in_process: InProcess = False) -> None:
    """Keep the generator of a finished run's last promoted round up behind HTTP until Ctrl-C.

    Overrides may follow: dynamics serve RUN serve.port=8001
    """
    folder = open_run(run)
    cfg = folder.config()
    reports = folder.reports(cfg.rounds)
    # A blocked round ends the run; the promoted one before it is served.
    if not reports or (reports[-1].promoted and reports[-1].round_id < cfg.rounds):
        raise UserError(f"{run} has not finished round {cfg.rounds}; bootstrap continues it")
    if in_process:
        from dynamics.core.config_file import with_overrides
        from dynamics.serving.in_process import serve_in_process

        serve_in_process(with_overrides(cfg, context.args), folder)
        return
    tree = cfg.model_dump(mode="json", exclude={"run_dir"})
    # YAML reads JSON, so every section of the run's own config fits into one override.
    own = [f"{key}={json.dumps(value)}" for key, value in tree.items()]
    arguments = ["--config", str(TABLETOP), "--run-dir", str(folder.root), "--serve"]
    become("bootstrap", [*arguments, *own, *context.args])
