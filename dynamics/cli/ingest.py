"""``dynamics ingest``: videos to frame pairs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dynamics.cli.shared import TABLETOP, PlaceName, console, local, named
from dynamics.core.config import KeyframeConfig, ModelConfig, PoolConfig
from dynamics.core.config_file import load
from dynamics.core.console import ProgressView
from dynamics.core.errors import UserError
from dynamics.core.places import as_place
from dynamics.data.refusals import way_out
from dynamics.data.video.sources import VIDEO_SUFFIXES, plain_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dynamics.data.video.ingest import Folder, IngestReport, RejectedClip
    from dynamics.models.image_tokenizer import ImageTokenizer

_FRAMES, _POOL, _FAMILY = KeyframeConfig(), PoolConfig(), ModelConfig().family
_SUFFIXES = ", ".join(sorted(suffix[1:] for suffix in VIDEO_SUFFIXES))


def ingest(
    folder: Annotated[
        PlaceName, typer.Argument(help=f"Folder of videos: {_SUFFIXES}.", parser=as_place)
    ],
    out: Annotated[Path, typer.Option(help="Folder to write: a table.", callback=local)] = Path(
        "pairs.parts"
    ),
    base: Annotated[
        PlaceName | None,
        typer.Option(help="Checkpoint whose image tokenizer encodes the frames.", parser=as_place),
    ] = None,
    family: Annotated[str, named("dynamics.models:FAMILIES", "Family of the base")] = _FAMILY,
    top_k: Annotated[int, typer.Option(help="Key frames a clip.", min=2)] = 6,
    spacing: Annotated[
        int, typer.Option(help="Least distance of key frames, in frames.", min=1)
    ] = 20,
    source: Annotated[str, named("dynamics.data.video.sources:SOURCES", "Layout")] = "folder",
    max_pairs: Annotated[int | None, typer.Option(help="Stop after so many pairs.", min=1)] = None,
    per_minute: Annotated[
        float, typer.Option(help="Key frames a minute, of clips that are long enough.", min=0)
    ] = _FRAMES.per_minute,
    min_change: Annotated[
        float, typer.Option(help="Pairs that change less are near-copies.", min=0, max=1)
    ] = _FRAMES.min_change,
    max_cut: Annotated[
        float, typer.Option(help="Pairs that differ more span a shot cut.", min=0, max=1)
    ] = _FRAMES.max_cut,
    timeout: Annotated[
        float, typer.Option(help="Processor seconds that any clip may take.", min=1)
    ] = _POOL.decode_timeout_s,
    cpu_per_s: Annotated[
        float, typer.Option(help="Further processor seconds per second of film.", min=0)
    ] = _POOL.decode_cpu_per_s,
    max_bad: Annotated[
        float, typer.Option(help="Stop when a larger share of the clips is bad.", min=0, max=1)
    ] = _POOL.max_bad_fraction,
    rejects: Annotated[
        Path | None,
        typer.Option(
            help="File to write: reason, name and detail of all that was left out, a line each.",
            callback=local,
        ),
    ] = None,
    sheet: Annotated[
        Path | None,
        typer.Option(
            help="HTML file to write: key frames of every clip beside what their codes keep of "
            "them, kept and rejected pairs with the reason.",
            callback=local,
        ),
    ] = None,
) -> None:
    """Turn a folder of videos into frame pairs, and say what was rejected and why.

    The first look at new videos: dynamics ingest CLIPS --sheet pairs.html
    """
    from dynamics.data.units import Encoding
    from dynamics.data.video.ingest import Folder, FolderError, ingest_videos
    from dynamics.models import load_image_tokenizer
    from dynamics.storage.files import remove_tree
    from dynamics.storage.pairs import PARTS, is_whole

    if out.suffix != PARTS:
        raise UserError(f"--out {out} must end in {PARTS}, like every table of pairs")
    images = load_image_tokenizer(family, base or load(TABLETOP).base_path())
    videos = Folder(
        root=folder,
        source=source,
        keyframes=KeyframeConfig(
            top_k=top_k,
            per_minute=per_minute,
            spacing_frames=spacing,
            min_change=min_change,
            max_cut=max_cut,
        ),
        max_pairs=max_pairs,
        what=str(folder),
    )
    pool = PoolConfig(
        path=folder,
        decode_timeout_s=timeout,
        decode_cpu_per_s=cpu_per_s,
        max_bad_fraction=max_bad,
    )
    encoding = Encoding(codes=out / "codes", load=lambda _: images, decide=lambda *_: "float32")
    was_there = out.exists()
    remove_tree(out / "units")  # of a killed command, perhaps with another base
    try:
        with ProgressView(console) as progress:
            _, (report,) = ingest_videos([videos], out, pool, images, encoding, progress=progress)
    except FolderError as error:
        _write_rejects(rejects, error.report.rejected_clips)
        _write_sheet(sheet, videos, pool, error.report, images)
        raise
    finally:
        if not was_there and not is_whole(out):
            remove_tree(out)
    _write_rejects(rejects, report.rejected_clips)
    _write_sheet(sheet, videos, pool, report, images)
    for reason, count in sorted(report.rejects.items()):
        advice = way_out(reason.removeprefix("clip/"))
        console.print(f"rejected {count:>7,}  {reason}{advice}", markup=False)
    console.print(f"{report.num_pairs:,} pairs from {report.num_clips:,} clips in {out}")
    console.print(
        f"next: name some of their actions: dynamics annotate {folder} --out labels.parquet",
        markup=False,
    )


def _write_sheet(
    path: Path | None,
    videos: "Folder",
    pool: PoolConfig,
    report: "IngestReport",
    images: "ImageTokenizer",
) -> None:
    from dynamics.report.sheet import sheet_reader, write_sheet

    if path is not None:
        with ProgressView(console) as progress:
            read = sheet_reader(videos, pool, images)
            write_sheet(path, videos, report, read, images, progress)
        console.print(f"contact sheet: {path}", markup=False)


def _write_rejects(path: Path | None, rejected: "Sequence[RejectedClip]") -> None:
    from dynamics.storage.files import write_bytes

    if path is not None:
        lines = [
            "\t".join(map(plain_text, (one.reason, one.clip_path, one.detail))) + "\n"
            for one in rejected
        ]
        write_bytes(path, "".join(lines).encode())
