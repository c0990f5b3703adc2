"""``dynamics new``: a commented config for a user's own videos and labels."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dynamics.cli.shared import TABLETOP, console, local
from dynamics.core.config import KeyframeConfig, LoopConfig, PoolConfig, PoolPart
from dynamics.core.config_file import load
from dynamics.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dynamics.data.labelled.listing import LabelledPair
    from dynamics.models.image_tokenizer import ImageTokenizer
    from dynamics.models.tokens import Tokens

_TEMPLATE = """\
# {name}: your own videos and labels. Every key and its default: dynamics/core/config.py.
# Next: {next}
name: {name}
seed: 0 # another seed holds out other clips
rounds: 3
run_dir: runs/{name}

pool: # unlabelled video
  path: {videos!r}
  keyframes:
    top_k: {top_k} # most frames of a clip that become pairs
    spacing_frames: {spacing} # {why}
    min_change: {least:.2g} # pairs that change less are left out; labelled ones seldom do

labelled: # {num_labels} labels of {num_sentences} sentences
  dataset: parquet
  path: {labels!r}
  heldout_fraction: {fraction} # whole clips: about {num_heldout} pairs measure, the rest teach
  # mirror: {{left: right}} # teach every pair mirrored, too, with these words exchanged

label:
  candidates: 8 # greedy and seven samples; IDM and FDP together choose
  max_action_tokens: {tokens} # the longest of your sentences, its end, and one to spare

filter:
  score: noisy_channel # what the IDM says of the frames and the FDP of the sentence
  rule: {{kind: balanced, fraction: 0.9}} # of every verb: what the FDP has yet to learn scores low

model:
  base: {base!r} # {base_why}
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
    least = _min_change(shipped, pairs)
    spacing, why = _spacing(videos, images, least)
    base, base_why = _base(name, shipped, pairs, images, tokens)
    makes = "check" if base == str(shipped.model.base) else "pretrain"
    following = f"dynamics {makes} {file if out else name}"
    text = _TEMPLATE.format(
        name=name,
        next=following,
        videos=str(videos.absolute()),
        labels=str(labels.absolute()),
        top_k=KeyframeConfig().top_k,
        spacing=spacing,
        why=why,
        least=least,
        num_labels=len(pairs),
        num_sentences=len(sentences),
        fraction=fraction,
        num_heldout=len(split(pairs, fraction, shipped.seed)[1]),
        tokens=max(len(tokens.text_ids(one)) for one in sentences) + 2,
        base=base,
        base_why=base_why,
        validation=0.2 if len(pairs) < 1000 else 0.0,
    )
    write_bytes(file, text.encode())
    _read_back(file)
    console.print(f"wrote {file}; next: {following}", markup=False)


def _read_back(file: Path) -> LoopConfig:
    """The config as a run reads it: what is wrong with it is said now."""
    return load(file)


def _base(
    name: str,
    shipped: LoopConfig,
    pairs: "Sequence[LabelledPair]",
    images: "ImageTokenizer",
    tokens: "Tokens",
) -> tuple[str, str]:
    """The shipped base where it knows the words and sees the changes, else a new one; and why."""
    from dynamics.core.progress import silent
    from dynamics.pretraining.frames import read_pairs
    from dynamics.pretraining.image_tokenizer import sight

    words = " ".join(sorted({word for pair in pairs for word in pair.action.split()}))
    own = f"runs/{name}-base"
    if unknown := list(tokens.unknown_words(words)):
        reason = f"the shipped base does not know the words {', '.join(unknown[:3])}"
        return own, f"dynamics pretrain makes it: {reason}"
    seen = read_pairs(shipped, pairs[:_PAIRS_LOOKED_AT], images.frame_px, silent, "labelled")
    if not sight(images, *seen.ends).is_clear:
        return own, "dynamics pretrain makes it: the shipped one does not see your changes clearly"
    return str(shipped.model.base), "it knows your words, and sees what changes in your pairs"


_LOOKED_AT, _PAIRS_LOOKED_AT = 8, 64
_SPACINGS = (20, 10, 5, 2, 1)


def _min_change(shipped: LoopConfig, pairs: "Sequence[LabelledPair]") -> float:
    """Half of what the least changing twentieth of some labelled pairs changes, or the default.

    The default is a camera's; in a drawn world a turn on the spot can be less.
    """
    import numpy as np

    from dynamics.core.progress import silent
    from dynamics.data.video.decode import THUMB_PX
    from dynamics.data.video.keyframes import change
    from dynamics.pretraining.frames import read_pairs

    seen = read_pairs(shipped, pairs[:_PAIRS_LOOKED_AT], THUMB_PX, silent, "labelled")
    least = float(np.quantile(change(*seen.ends), 0.05))
    return min(KeyframeConfig().min_change, least / 2)


def _spacing(videos: Path, images: "ImageTokenizer", least: float) -> tuple[int, str]:
    """The largest distance of key frames that gives two pairs a clip, and why."""
    from itertools import islice

    import numpy as np

    from dynamics.data.video.decode import ClipFrames
    from dynamics.data.video.ingest import clip_reader
    from dynamics.data.video.sources import list_clips

    clips = list(islice(list_clips(PoolPart(path=videos)), _LOOKED_AT))
    pairs = 0.0
    for spacing in _SPACINGS:
        keyframes = KeyframeConfig(spacing_frames=spacing, min_change=least)
        read = clip_reader(keyframes, PoolConfig(), images)
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
