"""``dynamics ingest``: videos to frame pairs."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dynamics.cli.shared import TABLETOP, console, local, named
from dynamics.core.config import KeyframeConfig, PoolConfig
from dynamics.core.config_file import load
from dynamics.core.console import ProgressView
from dynamics.core.errors import UserError
from dynamics.core.places import as_place
from dynamics.data.video.sources import VIDEO_SUFFIXES

_SUFFIXES = ", ".join(sorted(suffix[1:] for suffix in VIDEO_SUFFIXES))


def ingest(
    folder: Annotated[Any, typer.Argument(help=f"Folder of videos: {_SUFFIXES}.", parser=as_place)],
    out: Annotated[Path, typer.Option(help="Folder to write: a table.", callback=local)] = Path(
        "pairs.parts"
    ),
    base: Annotated[
        Any,
        typer.Option(help="Checkpoint whose image tokenizer encodes the frames.", parser=as_place),
    ] = None,
    top_k: Annotated[int, typer.Option(help="Key frames a clip.")] = 6,
    spacing: Annotated[int, typer.Option(help="Least distance of key frames, in frames.")] = 20,
    source: Annotated[str, named("dynamics.data.video.sources:SOURCES", "Layout")] = "folder",
    max_pairs: Annotated[int | None, typer.Option(help="Stop after so many pairs.")] = None,
) -> None:
    """Turn a folder of videos into frame pairs, and say what was rejected and why."""
    from dynamics.data.units import Encoding
    from dynamics.data.video.ingest import Folder, ingest_videos
    from dynamics.models import load_image_tokenizer
    from dynamics.storage.files import remove_tree
    from dynamics.storage.pairs import PARTS

    if out.suffix != PARTS:
        raise UserError(f"--out {out} must end in {PARTS}, like every table of pairs")
    cfg = load(TABLETOP)
    images = load_image_tokenizer(cfg.model.family, base or cfg.base_path())
    videos = Folder(
        root=folder,
        source=source,
        keyframes=KeyframeConfig(top_k=top_k, spacing_frames=spacing),
        max_pairs=max_pairs,
        what=str(folder),
    )
    encoding = Encoding(codes=out / "codes", load=lambda _: images, decide=lambda *_: "float32")
    remove_tree(out / "units")  # of a killed command, perhaps with another base
    with ProgressView(console) as progress:
        _, (report,) = ingest_videos(
            [videos], out, PoolConfig(path=folder), images, encoding, progress=progress
        )
    for reason, count in sorted(report.rejects.items()):
        console.print(f"rejected {count:>7,}  {reason}")
    console.print(f"{report.num_pairs:,} pairs from {report.num_clips:,} clips in {out}")
