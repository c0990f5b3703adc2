"""A run continues with its videos and its labelled set at another path, and with no others."""

import json
import re
import tarfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dynamics.core.config import LoopConfig, PoolPart
from dynamics.core.errors import UserError
from dynamics.core.records import PAIR_SCHEMA, TRANSITION_SCHEMA
from dynamics.data.labelled import DATASETS
from dynamics.data.labelled.read import file_digests
from dynamics.data.moved import check_moved
from dynamics.data.video.sources import list_clips
from dynamics.storage.files import sha256_file
from dynamics.storage.run_folder import RunFolder
from dynamics.storage.tables import write_table


def rows(named: Sequence[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    empty = {"clip_class": "", "frame0": 0, "frame1": 1, "t0_s": 0.0, "t1_s": 1.0, "motion": 0.1}
    codes: dict[str, Any] = {"source_codes": [1], "target_codes": [2], "recognition": [0.0]}
    full = [
        {"pair_id": str(number), "origin": "labelled", **empty, **codes, **row}
        for number, row in enumerate(named)
    ]
    return pa.Table.from_pylist([{key: row[key] for key in schema.names} for row in full], schema)


def videos(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def ingested(table: Path, *roots: Path) -> None:
    """The table of a pool's folders as ingest writes it."""
    named = [
        {
            "clip_path": f"{root.name}/{clip.name}" if len(roots) > 1 else clip.name,
            "clip_sha256": sha256_file(clip.path),
        }
        for root in roots
        for clip in list_clips(PoolPart(path=root))
    ]
    write_table(table, rows(named, PAIR_SCHEMA), PAIR_SCHEMA)


def claim(run: RunFolder, cfg: LoopConfig) -> None:
    with run.claimed(cfg, partial(check_moved, run)):
        pass


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def test_videos_at_another_path_continue_the_run(run: RunFolder, tmp_path: Path) -> None:
    clips = videos(tmp_path / "clips", "a/one.mp4", "two.mp4")
    claim(run, LoopConfig(pool={"path": clips}))
    ingested(run.data / "pool.parquet", clips)
    moved = videos(clips.rename(tmp_path / "disk"), "more.mp4")
    claim(run, LoopConfig(pool={"path": moved}))
    assert run.config().pool.path == moved


@pytest.mark.parametrize(("change", "said"), [(b"other", "differs"), (None, "is missing")])
def test_other_videos_are_refused_by_the_first_file(
    run: RunFolder, tmp_path: Path, change: bytes | None, said: str
) -> None:
    clips = videos(tmp_path / "clips", "a/one.mp4", "two.mp4")
    claim(run, LoopConfig(pool={"path": clips}))
    ingested(run.data / "pool.parquet", clips)
    moved = clips.rename(tmp_path / "disk")
    (moved / "two.mp4").unlink()
    if change:
        (moved / "two.mp4").write_bytes(change)
    message = f"{moved} does not hold what the run was made from, which lay in {clips}: two.mp4"
    for _ in range(2):
        with pytest.raises(UserError, match=f"{re.escape(message)} {said}"):
            claim(run, LoopConfig(pool={"path": moved}))
    assert run.config().pool.path == clips


def test_before_there_is_a_table_any_videos_do(run: RunFolder, tmp_path: Path) -> None:
    claim(run, LoopConfig(pool={"path": videos(tmp_path / "clips", "one.mp4")}))
    claim(run, LoopConfig(pool={"path": videos(tmp_path / "others", "two.mp4")}))


def test_of_several_folders_each_is_compared_and_keeps_its_name(
    run: RunFolder, tmp_path: Path
) -> None:
    def pool(k700: Path, mit: Path) -> LoopConfig:
        return LoopConfig(pool={"path": k700, "more": [{"path": mit}]})

    k700, mit = (videos(tmp_path / name, f"of-{name}.mp4") for name in ("k700", "mit"))
    claim(run, pool(k700, mit))
    ingested(run.data / "pool.parquet", k700, mit)
    (tmp_path / "disk").mkdir()
    moved = mit.rename(tmp_path / "disk" / "mit")
    claim(run, pool(k700, moved))
    with pytest.raises(UserError, match="clips are told apart by the folder's name"):
        claim(run, pool(k700, moved.rename(tmp_path / "disk" / "moments")))
    with pytest.raises(UserError, match=r"of-mit\.mp4 is missing"):
        claim(run, pool(k700, videos(tmp_path / "empty" / "mit", "other.mp4")))


def test_clips_inside_tars_are_compared_by_their_own_bytes(run: RunFolder, tmp_path: Path) -> None:
    clip = videos(tmp_path, "000.mp4") / "000.mp4"
    for name in ("tars", "moved"):
        (tmp_path / name).mkdir()
        with tarfile.open(tmp_path / name / "shard.tar", "w") as tar:
            tar.add(clip, "000.mp4")
    here, there = (
        LoopConfig(pool={"path": tmp_path / name, "source": "webdataset"})
        for name in ("tars", "moved")
    )
    claim(run, here)
    named = [{"clip_path": "shard.tar/000.mp4", "clip_sha256": sha256_file(clip)}]
    write_table(run.data / "pool.parquet", rows(named, PAIR_SCHEMA), PAIR_SCHEMA)
    claim(run, there)
    assert sorted(path.name for path in run.data.iterdir()) == ["pool.parquet"]


def labelled_set(folder: Path, picture: bytes = b"two") -> Path:
    folder.mkdir()
    (folder / "one.png").write_bytes(b"one")
    (folder / "two.png").write_bytes(picture)
    pairs = [
        {"instruction": said, "input": "one.png", "output": "two.png"} for said in ("push", "pull")
    ]
    (folder / "train.json").write_text(json.dumps(pairs))
    return folder / "train.json"


def test_a_labelled_set_at_another_path_continues_the_run_if_it_is_the_same(
    run: RunFolder, tmp_path: Path
) -> None:
    clips = videos(tmp_path / "clips", "one.mp4")

    def labelled(path: Path) -> LoopConfig:
        return LoopConfig(pool={"path": clips}, labelled={"dataset": "aurora", "path": path})

    path = labelled_set(tmp_path / "here")
    claim(run, labelled(path))
    named = [
        {
            "clip_path": pair.name,
            "clip_sha256": file_digests(pair.frames)[0],
            "action": pair.action,
        }
        for pair in DATASETS["aurora"](path).pairs
    ]
    for split, row in zip(("labelled", "heldout"), named, strict=True):
        table = rows([row], TRANSITION_SCHEMA)
        write_table(run.data / f"{split}.parquet", table, TRANSITION_SCHEMA)
    claim(run, labelled(labelled_set(tmp_path / "there")))
    with pytest.raises(UserError, match=r"one\.png \(push\) differs"):
        claim(run, labelled(labelled_set(tmp_path / "other", b"three")))
