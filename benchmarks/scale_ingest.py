"""Ingests of real clips, on Ray or in this process; prints seconds and the table's digest as JSON.

    python benchmarks/scale_ingest.py CLIPS OUT --cores 2 --actors 2
    python benchmarks/scale_ingest.py CLIPS OUT --cores 2 --in-process
    python benchmarks/scale_ingest.py CLIPS OUT --all

``--all`` is every way in turn: 1, 2, 4 actors, five sizes of parts, two orders.
"""

import argparse
import itertools
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dynamics.core.config import REPOSITORY_ROOT, LoopConfig, PoolConfig
from dynamics.core.config_file import load
from dynamics.core.domain import load_simulator
from dynamics.core.progress import Progress, silent
from dynamics.data.units import Encoding
from dynamics.data.video.ingest import Folder, ingest_videos
from dynamics.models import load_image_tokenizer
from dynamics.storage.streams import Done, RunStream, Stream, run_stream
from ray_jobs import runtime

ACTORS, PART_CLIPS, ORDERS = (1, 2, 4), (1, 3, 8, 16, 64), ("as listed", "backwards")


def film(num_pairs: int, folder: Path) -> Path:
    """Clips of the tabletop; returns their folder."""
    load_simulator(_config()).film("pool", num_pairs, folder, silent)
    return folder / "clips"


def ingest(clips: Path, out: Path, run: RunStream, part_clips: int | None) -> dict[str, Any]:
    """Seconds, pairs and digest of one ingest, whose table is removed."""
    cfg = _config()
    load_images = partial(load_image_tokenizer, cfg.model.family, cfg.base_path(), "cpu")
    folder = Folder(root=clips, keyframes=load_simulator(cfg).keyframes("pool"))
    encoding = Encoding(codes=out / "codes", load=load_images, decide=lambda *_: "float32")
    begin = time.monotonic()
    table, _ = ingest_videos(
        [folder],
        out / "pool.parts",
        PoolConfig(path=clips),
        load_images("float32"),
        encoding,
        part_clips=part_clips,
        run=run,
    )
    seconds = time.monotonic() - begin
    shutil.rmtree(out)
    return {"seconds": seconds, "pairs": table.num_rows, "digest": table.digest}


def on_ray(
    stream: Stream[Any], progress: Progress, *, num_actors: int, order: str
) -> Iterator[Done]:
    """Run a stream on so many actors, its items in another order if wanted."""
    from ray_jobs.streams import run_stream_on_ray

    if order == "backwards":
        stream = replace(stream, items=list(stream.items)[::-1])
    return run_stream_on_ray(stream, progress, num_actors=num_actors, num_gpus=0)


def every_way(clips: Path, out: Path) -> Iterator[dict[str, Any]]:
    """The 30 ingests."""
    for num_actors, part, order in itertools.product(ACTORS, PART_CLIPS, ORDERS):
        run = partial(on_ray, num_actors=num_actors, order=order)
        what = {"actors": num_actors, "part_clips": part, "order": order}
        yield what | ingest(clips, out, run, part)


def _config() -> LoopConfig:
    return load(REPOSITORY_ROOT / "configs" / "tabletop.yaml")


def main() -> None:
    """Parse, ingest, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clips", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cores", type=int, default=os.cpu_count())
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--in-process", action="store_true")
    parser.add_argument("--all", action="store_true")
    options = parser.parse_args()
    os.sched_setaffinity(0, range(options.cores))
    runtime.prepare_environment()
    try:
        if options.in_process:
            found: Iterator[dict[str, Any]] = iter(
                [ingest(options.clips, options.out, run_stream, None)]
            )
        else:
            runtime.ensure_ray(_config().cluster)
            run = partial(on_ray, num_actors=options.actors, order="as listed")
            if not options.all:
                ingest(options.clips, options.out, run, None)  # imports, in every process
            found = (
                every_way(options.clips, options.out)
                if options.all
                else iter([ingest(options.clips, options.out, run, None)])
            )
        for line in found:
            print(json.dumps(line), flush=True)
    finally:
        runtime.stop_ray()


if __name__ == "__main__":
    main()
