"""``dynamics study``: the paper's claims, measured over seeds."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from dynamics.cli.shared import TABLETOP, Config, Set, console, local
from dynamics.core.config_file import load
from dynamics.core.console import ProgressView
from dynamics.core.errors import UserError


def study(
    quick: Annotated[
        bool, typer.Option("--quick", help="One seed, two label sizes: a look, no evidence.")
    ] = False,
    seeds: Annotated[
        str | None, typer.Option(help="Seeds to film and train with, e.g. 141,142,143.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the study.", callback=local)] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Experiments at a time, one thread each; default: cores.", min=1),
    ] = None,
    publish_to: Annotated[
        Path | None,
        typer.Option(
            "--publish",
            help="Also write RESULTS.md, with one table for all other worlds, and plots here.",
            callback=local,
        ),
    ] = None,
    config: Config = TABLETOP,
    overrides: Set = None,
) -> None:
    """Measure the paper's three claims against fair controls, with intervals over seeds.

    On any world, e.g. --config configs/minigrid.yaml; on your own clips as far as it has a meaning
    without their rules. The tabletop's takes hours on two cores; it continues where it was stopped.
    """
    from dynamics.studies.experiments import QUICK, StudyPlan, fitted_to
    from dynamics.studies.runner import RESULTS_FILE, publish, run_study

    cfg = load(config, overrides or [])
    plan = fitted_to(QUICK if quick else StudyPlan(), cfg)
    if seeds is not None:
        plan = replace(plan, seeds=_seeds(seeds))
    if quick:
        cfg = cfg.model_copy(update={"rounds": 1})
    world = "" if cfg.name == "tabletop" else f"-{cfg.name}"
    folder = (out or Path("runs") / f"study{world}{'-quick' if quick else ''}").resolve()
    with ProgressView(console) as progress:
        results = run_study(
            cfg, plan, folder, num_workers=workers or os.cpu_count() or 1, progress=progress
        )
    for check in results.checks:
        verdict = "holds" if check.holds else "does not hold"
        console.print(f"{verdict:>13}  {check.claim}: {check.measured}, asked {check.asked}")
    if publish_to is not None:
        console.print(f"published: {publish(folder, publish_to)}")
    console.print(f"results: {folder / RESULTS_FILE}, plots beside it")


def _seeds(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"--seeds {text!r} must be whole numbers separated by commas") from error
