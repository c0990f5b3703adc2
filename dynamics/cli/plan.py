"""``dynamics plan``: needs of a run before it starts."""

import json
from typing import Annotated

import typer

from dynamics.cli.shared import TABLETOP, Config, Set, console
from dynamics.core.config_file import load


def plan(
    config: Config = TABLETOP,
    overrides: Set = None,
    tflops: Annotated[
        float | None,
        typer.Option(
            help="What a GPU (or core) reaches in large matrix products, 10^12 operations a "
            "second. Default: 790 (bfloat16, measured on an H200), on CPUs 0.17 (float32, a core)."
        ),
    ] = None,
    utilisation: Annotated[
        float, typer.Option(help="Share of it that the run reaches.", min=0.01, max=1.0)
    ] = 0.33,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Say what a run needs before it starts: parameters, memory, hours, disk. Nothing is loaded."""
    from dynamics.plan import Machine, make_plan
    from dynamics.plan.table import plan_table

    cfg = load(config, overrides or [])
    ceiling = tflops or (790.0 if cfg.model.device == "cuda" else 0.17)
    made = make_plan(cfg, Machine(tflops=ceiling, utilisation=utilisation))
    if as_json:
        typer.echo(json.dumps(made.to_json(), indent=2))
    else:
        console.print(plan_table(made))
