"""``dynamics pretrain``: a base checkpoint from a user's own clips."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dynamics.cli.check import config_path
from dynamics.cli.shared import Set, console
from dynamics.core.config import LoopConfig
from dynamics.core.config_file import load
from dynamics.core.console import ProgressView
from dynamics.core.errors import UserError
from dynamics.core.progress import Progress
from dynamics.core.registry import imported

if TYPE_CHECKING:
    from dynamics.pretraining.make import Corpus


def pretrain(
    config: Annotated[str, typer.Argument(help="Config file, or NAME of configs/NAME.yaml.")],
    overrides: Set = None,
) -> None:
    """Make a base from your own clips: the checkpoint folder that model.base names.

    An image tokenizer is fitted to the frames, and a small network learns from them without any
    text; its words are those of the labels, and common ones. Clips behind held-out pairs teach
    nothing: on them it is measured. The keys of the recipe are pretrain.* of the config. Stopped,
    the same command goes on. When the clips, the camera or the words change, remove the folder and
    make it anew.
    """
    from dynamics.pretraining.make import RECIPE_FILE, make_base, work_folder

    path = config_path(config)
    cfg = load(path, overrides or [])
    out = cfg.base_path()
    if not isinstance(out, Path):
        raise UserError(f"model.base={out}: a base is made in a folder of this machine")
    if cfg.model.family != "chameleon":
        raise UserError(f"model.family={cfg.model.family}: what is made here is a chameleon")
    if out.exists():
        raise UserError(f"{out} exists; remove it to make it anew, or set model.base to another")
    with ProgressView(console) as progress:
        measured = make_base(cfg, _corpus(cfg, work_folder(out), progress), out, progress)
    for line in _lines(measured):
        console.print(line, markup=False)
    others = [one for one in overrides or [] if not one.startswith("pretrain.")]
    same = " ".join([config, *(f"--set {one}" for one in others)])
    console.print(f"made {out} ({RECIPE_FILE} says how); next: dynamics check {same}", markup=False)


def _corpus(cfg: LoopConfig, work: Path, progress: Progress) -> "Corpus":
    """What the config's base is made from."""
    from dynamics.pretraining import CORPORA
    from dynamics.pretraining.own_clips import OwnClips

    name = cfg.domain or ("tabletop" if cfg.labelled.dataset is None else "")
    make: Callable[[LoopConfig, Path, Progress], Corpus]
    make = imported(CORPORA[name]) if name in CORPORA else OwnClips
    return make(cfg, work, progress)


def _lines(measured: dict[str, Any]) -> list[str]:
    """What was measured, for people."""
    seen, losses = measured["image_tokenizer"], measured["heldout_losses"]
    lines = [f"tried {size} codes: {_said(found)}" for size, found in seen.get("tried", {}).items()]
    if "codes_a_frame" in seen:
        lines.append(f"taken: {seen['codes_a_frame']} codes a frame of {seen['frame_px']} px")
    lines.append(f"image tokenizer: {_said(seen.get('heldout', seen))}")
    if losses:
        lines.append(f"base: held-out losses {_said(losses)}")
    return lines


def _said(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in values.items())
