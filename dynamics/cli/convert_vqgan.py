"""``dynamics convert-vqgan``: a published image decoder to safetensors."""

from pathlib import Path
from typing import Annotated

import typer

from dynamics.cli.shared import console, local


def convert_vqgan_command(
    ckpt: Annotated[
        Path, typer.Argument(help="The published vqgan.ckpt.", metavar="CKPT", callback=local)
    ],
    out: Annotated[
        Path,
        typer.Argument(
            help="Checkpoint folder that shall draw with it.", metavar="OUT", callback=local
        ),
    ],
) -> None:
    """Convert Chameleon's vqgan.ckpt (also Liquid's) to safetensors; runs no code from the file."""
    from dynamics.models.convert_vqgan import convert_vqgan

    num_weights = convert_vqgan(ckpt, out)
    console.print(f"{num_weights} weights; {out} now has vqgan.json and vqgan.safetensors")
