"""``dynamics film``: clips of the procedural tabletop, or of a Gymnasium environment."""

from pathlib import Path
from typing import Annotated

import typer

from dynamics.cli.shared import TABLETOP, Config, Set, console, local
from dynamics.core.config import WorldConfig
from dynamics.core.config_file import load
from dynamics.core.console import ProgressView
from dynamics.core.errors import UserError


def film(
    context: typer.Context,
    out: Annotated[
        Path, typer.Argument(help="Folder for clips/ and clips.parquet.", callback=local)
    ],
    pairs: Annotated[int, typer.Option(help="Frame pairs to film.", min=1)] = 100,
    seed: Annotated[int, typer.Option(help="Equal seeds film equal clips.")] = 0,
    env: Annotated[
        str | None,
        typer.Option(help="Id of a Gymnasium environment, e.g. MiniGrid-DoorKey-6x6-v0."),
    ] = None,
    labels: Annotated[
        int, typer.Option(help="Of --env: pairs with a sentence, in labels.parquet.", min=0)
    ] = 1000,
    length: Annotated[int, typer.Option(help="Of --env: pairs of a clip.", min=1)] = 6,
    repeat: Annotated[
        int | None,
        typer.Option(help="Of --env: moments that an action is carried out for.", min=1),
    ] = None,
    lerobot: Annotated[
        bool,
        typer.Option(
            "--lerobot", help="Of --env: a LeRobot v3 dataset with every moment, instead of clips."
        ),
    ] = False,
    actions: Annotated[
        str | None,
        typer.Option(help="Of --env: words for its actions, e.g. 0=left,1=right."),
    ] = None,
    config: Config = TABLETOP,
    overrides: Set = None,
) -> None:
    """Film episodes of the procedural tabletop, or of a Gymnasium environment with sentences."""
    world = load(config, overrides or []).world
    if env is None:
        _refuse_options_of_env(context)
        from dynamics.tabletop.film import film_split

        with ProgressView(console) as progress:
            film_split("pool", world, pairs, seed, out, progress)
    else:
        from dynamics.worlds.lerobot import write_lerobot
        from dynamics.worlds.record import FilmPlan, film_env

        plan = FilmPlan(
            env=env, words=actions, pairs=pairs, labels=labels, length=length, repeat=repeat,
            hold_frames=world.hold_frames, fps=world.fps, seed=seed,
        )  # fmt: skip
        with ProgressView(console) as progress:
            (write_lerobot if lerobot else film_env)(plan, out, progress)
        if lerobot:
            console.print(f"a LeRobot dataset in {out}", markup=False)
            return
        _advise(out, length, world)
    console.print(f"{len(list((out / 'clips').glob('*.mp4'))):,} clips in {out / 'clips'}")


def _refuse_options_of_env(context: typer.Context) -> None:
    for name in ("labels", "length", "repeat", "lerobot", "actions"):
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise UserError(f"--{name} is for an environment: name it with --env")


def _advise(out: Path, length: int, world: WorldConfig) -> None:
    """Say how a run reads the clips: their jumps are smaller than those of a camera."""
    from dynamics.worlds.record import held_keyframes

    keys = held_keyframes(length, world.hold_frames).model_dump(exclude_defaults=True)
    settings = ", ".join(f"{name}: {value}" for name, value in keys.items())
    console.print(f"sentences in {out / 'labels.parquet'}", markup=False)
    console.print(f"for every pair, in the config: pool.keyframes: {{{settings}}}", markup=False)
