"""``dynamics film``: episodes of the procedural tabletop."""

from pathlib import Path
from typing import Annotated

import typer

from dynamics.cli.shared import TABLETOP, Config, Set, console, local
from dynamics.core.config_file import load
from dynamics.core.console import ProgressView


def film(
    out: Annotated[
        Path, typer.Argument(help="Folder for clips/ and clips.parquet.", callback=local)
    ],
    pairs: Annotated[int, typer.Option(help="Frame pairs to film.")] = 100,
    seed: Annotated[int, typer.Option(help="Equal seeds film equal clips.")] = 0,
    config: Config = TABLETOP,
    overrides: Set = None,
) -> None:
    """Film episodes of the procedural tabletop into mp4 files, as a run films its pool."""
    from dynamics.tabletop.film import film_split

    world = load(config, overrides or []).world
    with ProgressView(console) as progress:
        film_split("pool", world, pairs, seed, out, progress)
    console.print(f"{len(list((out / 'clips').glob('*.mp4'))):,} clips in {out / 'clips'}")
