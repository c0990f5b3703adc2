"""Streams on a real Ray: ingest and the leakage search."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest

from dynamics.core.config import ClusterConfig, KeyframeConfig, PoolConfig
from dynamics.core.errors import UserError
from dynamics.core.progress import NO_DETAIL, Detail, Progress, silent
from dynamics.core.records import DatasetRef
from dynamics.data.video.ingest import Folder, IngestReport, ingest_videos
from dynamics.storage.streams import Done, RunStream, Stream, run_stream
from tests.made_data import write_clip
from tests.unit.data.video.conftest import BlockTokenizer, encoding_with

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("local_ray")]


def on_actors(num_actors: int) -> RunStream:
    from ray_jobs.streams import run_stream_on_ray

    return partial(run_stream_on_ray, num_actors=num_actors, num_gpus=0)


class DiesOnce(BlockTokenizer):
    """Kills its process at the first frames that it encodes, once."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def encode_with_features(self, frames_BHW3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if not self._mark.exists():
            self._mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode_with_features(frames_BHW3)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    for number in range(9):
        write_clip(root / f"class{number % 2}" / f"{number}.mp4", range(number, number + 5))
    (root / "copy.mp4").write_bytes((root / "class0" / "0.mp4").read_bytes())
    (root / "bad.mp4").write_text("no video")
    return root


def ingested(
    root: Path, out: Path, run: RunStream, load: Any = BlockTokenizer, **settings: Any
) -> tuple[DatasetRef, IngestReport]:
    folder = Folder(
        root=root,
        keyframes=KeyframeConfig(top_k=6, spacing_frames=4),
        max_pairs=settings.pop("max_pairs", None),
    )
    encoding = encoding_with(load, out.parent / "codes")
    images = BlockTokenizer()
    table, (report,) = ingest_videos(
        [folder], out, PoolConfig(), images, encoding, run=run, **settings
    )
    return table, report


@pytest.mark.parametrize(
    ("num_actors", "part_clips"),
    [
        pytest.param(1, 1, marks=pytest.mark.slow),
        (2, 4),
        pytest.param(4, 2, marks=pytest.mark.slow),
    ],
)
def test_actors_make_the_table_that_one_process_makes(
    videos: Path, tmp_path: Path, num_actors: int, part_clips: int
) -> None:
    whole, counted = ingested(videos, tmp_path / "whole.parts", run_stream)
    table, report = ingested(
        videos, tmp_path / "a.parts", on_actors(num_actors), part_clips=part_clips
    )
    assert (table.digest, report) == (whole.digest, counted)
    some, counted = ingested(videos, tmp_path / "some.parts", run_stream, max_pairs=17)
    table, report = ingested(
        videos, tmp_path / "b.parts", on_actors(num_actors), part_clips=part_clips, max_pairs=17
    )
    assert (table.digest, report) == (some.digest, counted)
    assert table.num_rows == 17


def test_a_killed_actor_costs_no_row(videos: Path, tmp_path: Path) -> None:
    whole, _ = ingested(videos, tmp_path / "whole.parts", run_stream)
    load = partial(DiesOnce, tmp_path / "died")
    table, _ = ingested(videos, tmp_path / "a.parts", on_actors(2), load, part_clips=2)
    assert (tmp_path / "died").exists()
    assert table.digest == whole.digest


class Counter:
    """Writes down which items were worked on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def run(self, item: int, rows: pa.Table) -> Done:
        (self._folder / str(item)).touch()
        return Done(count=rows.num_rows, found=pa.table({"item": [item]}))


def read_item(folder: Path, item: int) -> pa.Table:
    (folder / f"read-{item}").touch()
    return pa.table({"pixels": [bytes(1 << 20)]})


class DiesAtEveryTenthItem(Counter):
    """Kills its process before some items, once each; every item takes a while."""

    def run(self, item: int, rows: pa.Table) -> Done:
        mark = self._folder / f"died-{item}"
        if item % 10 == 9 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.5)
        return Done(count=100, found=pa.table({"item": [item]}))


@pytest.mark.slow
def test_workers_killed_every_five_seconds_lose_and_double_no_row_and_do_half_of_the_work(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    num_items = 100

    def seconds_for(folder: Path, *, calm: bool) -> float:
        folder.mkdir()
        for item in range(num_items if calm else 0):
            (folder / f"died-{item}").touch()
        stream: Stream[int] = Stream(
            what="count",
            items=range(num_items),
            total=100 * num_items,
            read=partial(read_item, folder),
            make_worker=partial(DiesAtEveryTenthItem, folder),
        )
        start = time.monotonic()
        found = list(on_actors(2)(stream, silent))
        items = [done.found["item"][0].as_py() for done in found if done.found is not None]
        assert sorted(items) == list(range(num_items))
        assert sum(done.count for done in found) == 10_000
        return time.monotonic() - start

    ratios = [
        seconds_for(tmp_path / f"calm-{turn}", calm=True)
        / seconds_for(tmp_path / f"killed-{turn}", calm=False)
        for turn in range(2)
    ]
    record_property("cases", 2 * num_items // 10)
    assert max(ratios) >= 0.5


class SaysWhenItsProcessBegan:
    def run(self, item: int, rows: pa.Table) -> Done:
        began = psutil.Process().create_time()
        return Done(count=1, found=pa.table({"began": [began]}))


def test_a_stream_without_gpus_runs_in_the_processes_of_the_last_one(tmp_path: Path) -> None:
    def began() -> list[float]:
        stream: Stream[int] = Stream(
            what="count",
            items=range(2),
            total=2,
            read=partial(read_item, tmp_path),
            make_worker=SaysWhenItsProcessBegan,
        )
        found = [done.found for done in on_actors(1)(stream, silent)]
        return [table["began"][0].as_py() for table in found if table is not None]

    began()
    first_ended = time.time()
    last_began = began()
    assert len(last_began) == 2
    assert max(last_began) < first_ended


def test_reads_wait_for_the_work_and_end_with_the_one_who_stops(tmp_path: Path) -> None:
    def stopped(progress: Progress) -> Iterator[Done]:
        stream: Stream[int] = Stream(
            what="count",
            items=iter(range(400)),
            total=400,
            read=partial(read_item, tmp_path),
            make_worker=partial(Counter, tmp_path),
        )
        yield from on_actors(1)(stream, progress)

    found = []
    for done in stopped(silent):
        assert done.found is not None
        found.append(done.found["item"][0].as_py())
        if len(found) == 3:
            break
    assert len(set(found)) == 3
    assert len(list(tmp_path.glob("read-*"))) < 400


def test_a_stream_that_finds_no_room_says_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    from ray_jobs import demand, runtime, streams

    monkeypatch.setattr(demand, "PATIENCE_S", 2.0)
    said: list[str] = []

    def progress(done: int, total: int, what: str, detail: Detail = NO_DETAIL) -> None:
        said.append(detail.note)
        if detail.note and demand.PATIENCE_S == 2.0:
            ray.util.remove_placement_group(everything)
            demand.PATIENCE_S = 60.0

    def run(num_gpus: float) -> int:
        stream: Stream[int] = Stream(
            what="count",
            items=range(3),
            total=3,
            read=partial(read_item, tmp_path),
            make_worker=partial(Counter, tmp_path),
        )
        found = streams.run_stream_on_ray(stream, progress, num_actors=2, num_gpus=num_gpus)
        with runtime.on_ray(ClusterConfig()):
            return sum(done.count for done in found)

    with pytest.raises(UserError, match=r"^count needs 1 x .* have room for 0"):
        run(1.0)
    # Other work holds all CPUs for a while.
    everything = ray.util.placement_group([{"CPU": 8}])
    ray.get(everything.ready())
    assert run(0.0) == 3
    assert "needs 1 x (1 CPU); other work leaves room for 0" in said
