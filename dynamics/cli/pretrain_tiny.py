"""``dynamics pretrain-tiny``: the base checkpoint of the tabletop."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from dynamics.cli.shared import TABLETOP, Config, Set, console, local
from dynamics.core.config_file import load
from dynamics.core.console import ProgressView


def pretrain_tiny_command(
    out: Annotated[Path, typer.Argument(help="Folder of the new checkpoint.", callback=local)],
    steps: Annotated[int | None, typer.Option(help="Steps of the base; default: recipe's.")] = None,
    tokenizer_steps: Annotated[
        int | None, typer.Option(help="Steps of the image tokenizer; default: recipe's.")
    ] = None,
    config: Config = TABLETOP,
    overrides: Set = None,
) -> None:
    """Make the tiny base checkpoint: pictures, captions, questions; no action, no transition."""
    from dynamics.tabletop.pretraining.pretrain_tiny import TinyRecipe, pretrain_tiny

    recipe = TinyRecipe()
    recipe = replace(
        recipe,
        steps=recipe.steps if steps is None else steps,
        tokenizer_steps=recipe.tokenizer_steps if tokenizer_steps is None else tokenizer_steps,
    )
    world = load(config, overrides or []).world
    with ProgressView(console) as progress:
        pretrain_tiny(world, recipe, out, progress=progress)
    console.print(f"checkpoint {out}; use it with model.base={out}")
