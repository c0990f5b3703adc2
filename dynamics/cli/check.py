"""``dynamics check``: what will go wrong in a run, before it does."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from dynamics.cli.shared import Set, console
from dynamics.core.config import REPOSITORY_ROOT, LoopConfig
from dynamics.core.config_file import load
from dynamics.core.console import ProgressView, print_whole
from dynamics.core.errors import UserError

if TYPE_CHECKING:
    from dynamics.plan.findings import Finding

_MOST_PAIRS = 2000
"""Pairs of the pool that are read: enough for shares, and minutes at most."""


def check(
    config: Annotated[str, typer.Argument(help="Config file, or NAME of configs/NAME.yaml.")],
    overrides: Set = None,
    fit: Annotated[
        bool,
        typer.Option(
            help="Also train IDM and FDP on a quarter and on all of the labels, as long as round 0 "
            "does, and say what rounds can be expected to bring."
        ),
    ] = False,
) -> None:
    """Say what would go wrong in a run on this data: what, how bad, what to do.

    Reads the labelled set and a part of the pool into a temporary folder. Status 1 when a run would
    be meaningless.
    """
    path = config_path(config)
    cfg = load(path, overrides or [])
    with TemporaryDirectory(prefix="dynamics-check-") as temporary:
        found = _findings(cfg, Path(temporary) / "run", fit)
    print_whole(console, finding_table(found))
    same = " ".join([str(path), *(overrides or [])])
    if any(one.level == "refuse" for one in found.values()):
        console.print(f"a run refuses to start; next: mend these, then dynamics check {config}")
        raise typer.Exit(1)
    console.print(f"next: dynamics bootstrap --config {same}", markup=False)


def config_path(named: str) -> Path:
    """The file of a config that is named by its path, or by its name in ``configs``.

    Raises:
        UserError: there is none.
    """
    places = [Path(named), *(root / f"configs/{named}.yaml" for root in (Path(), REPOSITORY_ROOT))]
    for place in places:
        if place.is_file():
            return place
    raise UserError(f"no config {named} and no configs/{named}.yaml; dynamics new writes one")


def finding_table(found: "Mapping[str, Finding]") -> Table:
    """Findings with their level and what to do, the worst first."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    styles = {"refuse": "[red]REFUSE[/red]", "warn": "[yellow]warn[/yellow]", "fine": "fine"}
    for level, shown in styles.items():
        for name, one in found.items():
            if one.level == level:
                table.add_row(shown, "\n".join(_lines(name, one)))
    return table


def _lines(name: str, one: "Finding") -> Iterator[str]:
    from rich.markup import escape

    yield f"{name.replace('_', ' ')}: {escape(one.found)}"
    if one.remedy:
        yield f"-> {escape(one.remedy)}"


def _findings(cfg: LoopConfig, folder: Path, fit: bool) -> "Mapping[str, Finding]":
    """Findings about a part of the run's data, which is made in a folder of its own."""
    from dynamics.evaluation.more_labels import measure_more_labels
    from dynamics.models import load_image_tokenizer
    from dynamics.pipeline.prepare import prepare
    from dynamics.plan.findings import evidence_of, expected_of_rounds, findings
    from dynamics.storage.run_folder import RunFolder
    from dynamics.storage.streams import run_stream

    pool = cfg.pool.model_copy(update={"num_pairs": min(cfg.pool.num_pairs, _MOST_PAIRS)})
    part = cfg.model_copy(update={"pool": pool, "run_dir": folder})
    run = RunFolder(folder)
    images = load_image_tokenizer(cfg.model.family, cfg.base_path(), cfg.model.device)
    with ProgressView(console) as progress, run.claimed(part):
        data = prepare(part, run, images, run_stream, progress)
        found = findings(evidence_of(part, run, data, images))
        if fit and all(one.level != "refuse" for one in found.values()):
            found["rounds"] = expected_of_rounds(measure_more_labels(part, run, data, progress))
        return found
