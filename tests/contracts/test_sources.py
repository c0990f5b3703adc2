"""What every pool source promises: one suite over SOURCES."""

from collections import Counter
from pathlib import Path

import pytest

from dynamics.core.config import (
    FilterConfig,
    KeyframeConfig,
    PoolConfig,
)
from dynamics.core.errors import UserError
from dynamics.core.records import LABEL_SCHEMA, PAIR_SCHEMA
from dynamics.data.video.ingest import Folder, ingest_videos
from dynamics.data.video.sources import SOURCES, Clip
from dynamics.labelling.filter import StratifiedTopKRule, decide
from dynamics.storage.tables import read_table
from tests.made_data import SOURCE_WRITERS
from tests.stores import upload
from tests.unit.data.video.conftest import BlockTokenizer, encoding_with
from tests.unit.storage.rows import make_labels

HELD = KeyframeConfig(top_k=6, spacing_frames=4)


@pytest.fixture(params=sorted(SOURCES))
def source(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def root(source: str, tmp_path: Path) -> Path:
    SOURCE_WRITERS[source](tmp_path / "root")
    return tmp_path / "root"


def test_every_source_has_a_name_in_the_config_and_a_sample():
    assert set(SOURCES) == set(SOURCE_WRITERS)


def test_clips_are_sorted_named_and_have_one_of_two_classes(source, root):
    clips = [found for found in SOURCES[source](root) if isinstance(found, Clip)]
    names = [clip.name for clip in clips]
    assert len(names) == 4
    assert names == sorted(names)
    assert len(list(SOURCES[source](root))) == 4
    assert sorted(Counter(clip.clip_class for clip in clips).values()) == [2, 2]
    assert all(clip.path.is_absolute() and clip.path.is_file() for clip in clips)
    assert all(clip.version for clip in clips)


def test_listing_twice_gives_the_same(source, root):
    assert list(SOURCES[source](root)) == list(SOURCES[source](root))


def test_clips_become_pairs_whose_classes_the_stratified_filter_takes_turns_by(
    source, root, tmp_path
):
    out = tmp_path / "out" / "pool.parts"
    folder = Folder(root=root, source=source, keyframes=HELD)
    encoding = encoding_with(BlockTokenizer, out.parent / "codes")
    ref, (report,) = ingest_videos([folder], out, PoolConfig(), BlockTokenizer(), encoding)
    pairs = read_table(ref, PAIR_SCHEMA)
    assert (report.num_clips, report.num_read, report.rejects) == (4, 4, {})
    assert pairs.num_rows >= 12
    place = LABEL_SCHEMA.get_field_index("clip_class")
    labels = make_labels(pairs.num_rows).set_column(place, "clip_class", pairs["clip_class"])
    rule = StratifiedTopKRule(k=6)
    decisions = decide(labels, FilterConfig(rule=rule)).to_pylist()
    kept = {row["label_id"] for row in decisions if row["accepted"]}
    classes = Counter(row["clip_class"] for row in labels.to_pylist() if row["label_id"] in kept)
    assert sorted(classes.values()) == [3, 3]
    assert {path.name for path in out.parent.iterdir()} == {"pool.parts", "codes"}
    assert {path.name for path in out.iterdir()} == {"manifest.json", "rows"}


def test_an_empty_a_missing_and_a_wrong_root_are_named(source, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    for name, said in (("empty", "holds no"), ("nowhere", "does not exist"), ("file", "is a file")):
        with pytest.raises(UserError, match=f"{name} {said}") as caught:
            list(SOURCES[source](tmp_path / name))
        assert "pool." in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_folder_in_a_store_has_the_clips_and_pairs_of_one_here(source, root, s3, tmp_path):
    upload(root, s3 / root.name)
    tables, clips = [], []
    for place, out in ((root, tmp_path / "ours"), (s3 / root.name, s3 / "theirs")):
        clips.append([(c.name, c.clip_class, c.place) for c in SOURCES[source](place)])
        folder = Folder(root=place, source=source, keyframes=HELD)
        encoding = encoding_with(BlockTokenizer, out / "codes")
        ref, _ = ingest_videos(
            [folder], out / "pool.parts", PoolConfig(), BlockTokenizer(), encoding
        )
        tables.append(read_table(ref, PAIR_SCHEMA))
    assert clips[0] == clips[1]
    assert tables[0].equals(tables[1])
