"""``dynamics new``: a commented config for a user's own videos and labels."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dynamics.cli.shared import TABLETOP, console, local
from dynamics.core.config import KeyframeConfig, LoopConfig, PoolConfig, PoolPart
from dynamics.core.config_file import load
from dynamics.core.errors import UserError

if TYPE_CHECKING:
    from dynamics.models.image_tokenizer import ImageTokenizer

_TEMPLATE = """\
# {name}: your own videos and labels. Every key and its default: dynamics/core/config.py.
# Next: dynamics check {file}
name: {name}
seed: 0 # another seed holds out other clips
rounds: 3
run_dir: runs/{name}

pool: # unlabelled video
  path: {videos!r}
  keyframes:
    top_k: {top_k} # most frames of a clip that become pairs
    spacing_frames: {spacing} # {why}

labelled: # {num_labels} labels of {num_sentences} sentences
  dataset: parquet
  path: {labels!r}
  heldout_fraction: {fraction} # whole clips: about {num_heldout} pairs measure, the rest teach
  # mirror: {{left: right}} # teach every pair mirrored, too, with these words exchanged

label:
  max_action_tokens: {tokens} # the longest of your sentences, its end, and one to spare

model:
  base: {base!r} # dynamics check says whether its tokenizers know your pictures and words
  device: cpu

train:
  init: previous # adapters go on from the last round's
  first_steps: 600
  round_steps: 400
  validation_fraction: {validation} # of the labelled clips: fits end where these get worse
"""


def new(
    name: Annotated[str, typer.Argument(help="Name of the run: letters, digits, . _ -")],
    videos: Annotated[Path, typer.Option(help="Folder of videos.", callback=local)],
    labels: Annotated[
        Path,
        typer.Option(help="Labels that dynamics annotate wrote (Parquet).", callback=local),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="File to write; default: configs/NAME.yaml.", callback=local),
    ] = None,
) -> None:
    """Write a commented config for your own videos and labels, with a split by clip."""
    from dynamics.data.labelled import DATASETS
    from dynamics.data.labelled.split import split
    from dynamics.models import load_image_tokenizer, load_tokens
    from dynamics.storage.files import write_bytes

    file = out or Path("configs") / f"{name}.yaml"
    if file.exists():
        raise UserError(f"{file} exists; remove it, or name another with --out")
    for path in (videos, labels):
        if not path.exists():
            raise UserError(f"{path} does not exist")
    shipped = load(TABLETOP, [f"name={name}"])
    images = load_image_tokenizer(shipped.model.family, shipped.base_path())
    tokens = load_tokens(shipped.model.family, shipped.base_path(), images)
    pairs = DATASETS["parquet"](labels).pairs
    fraction = 0.1 if len(pairs) >= 1000 else 0.3
    sentences = {pair.action for pair in pairs}
    spacing, why = _spacing(videos, images)
    text = _TEMPLATE.format(
        name=name,
        file=file,
        videos=str(videos.absolute()),
        labels=str(labels.absolute()),
        top_k=KeyframeConfig().top_k,
        spacing=spacing,
        why=why,
        num_labels=len(pairs),
        num_sentences=len(sentences),
        fraction=fraction,
        num_heldout=len(split(pairs, fraction, shipped.seed)[1]),
        tokens=max(len(tokens.text_ids(one)) for one in sentences) + 2,
        base=str(shipped.model.base),
        validation=0.2 if len(pairs) < 1000 else 0.0,
    )
    write_bytes(file, text.encode())
    _read_back(file)
    console.print(f"wrote {file}; next: dynamics check {file}", markup=False)


def _read_back(file: Path) -> LoopConfig:
    """The config as a run reads it: what is wrong with it is said now."""
    return load(file)


_LOOKED_AT = 8
_SPACINGS = (20, 10, 5, 2, 1)


def _spacing(videos: Path, images: "ImageTokenizer") -> tuple[int, str]:
    """The largest distance of key frames that gives two pairs a clip, and why."""
    from itertools import islice

    import numpy as np

    from dynamics.data.video.decode import ClipFrames
    from dynamics.data.video.ingest import clip_reader
    from dynamics.data.video.sources import list_clips

    clips = list(islice(list_clips(PoolPart(path=videos)), _LOOKED_AT))
    pairs = 0.0
    for spacing in _SPACINGS:
        read = clip_reader(KeyframeConfig(spacing_frames=spacing), PoolConfig(), images)
        found = [read.read(clip).result for clip in clips]
        counts = [
            sum(pair.verdict == "accepted" for pair in one.pairs)
            for one in found
            if isinstance(one, ClipFrames)
        ]
        pairs = float(np.mean(counts)) if counts else 0.0
        if pairs >= 2:
            break
    return spacing, f"gives {pairs:.1f} pairs a clip, of the first {len(clips)} clips"
