import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dynamics.core.errors import UserError
from dynamics.data.labelled.paths import Refused
from dynamics.data.labelled.table import list_parquet
from tests.made_data import picture, write_parquet


def written(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path


def test_embedded_pictures_are_read_when_they_are_used(tmp_path):
    listed = list_parquet(write_parquet(tmp_path))
    assert [pair.sources for pair in listed.pairs[:3]] == [
        ("clips/0.mp4",),
        ("clips/0.mp4",),
        ("clips/1.mp4",),
    ]
    for number in (7, 0, 6, 2):  # over row groups, in any order
        frames = listed.pairs[number].frames
        assert frames.source.read() == picture(9 * number)
        assert frames.target.read() == picture(9 * number + 4)


def test_pictures_may_be_paths_that_count_from_the_table(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(picture(ord(name[0])))
    path = written(
        tmp_path / "t.parquet",
        source_image=["a.png", "../a.png", "b.png"],
        target_image=["b.png", "b.png", "/etc/passwd"],
        action=["open it", "open it", "open it"],
    )
    listed = list_parquet(path)
    (pair,) = listed.pairs
    assert pair.frames.target.read() == picture(ord("b"))
    assert pair.sources == ("a.png", "b.png")
    assert listed.counts() == {"path_outside": 2}


def test_pictures_may_be_those_of_hugging_face(tmp_path):
    path = written(
        tmp_path / "t.parquet",
        source_image=[{"bytes": picture(1), "path": "/home/someone/a.png"}],
        target_image=[{"bytes": None, "path": "b.png"}],
        action=["open it"],
    )
    (pair,) = list_parquet(path).pairs
    assert pair.frames.source.read() == picture(1)
    with pytest.raises(Refused, match="missing_image"):
        pair.frames.target.read()


def test_a_folder_gives_all_its_tables(tmp_path):
    write_parquet(tmp_path)
    (tmp_path / "pairs.parquet").rename(tmp_path / "b.parquet")
    write_parquet(tmp_path)
    (tmp_path / "pairs.parquet").rename(tmp_path / "a.parquet")
    assert len(list_parquet(tmp_path).pairs) == 16


def test_bad_tables_are_one_line(tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(UserError, match=r"t\.parquet is no Parquet file"):
        list_parquet(tmp_path)
    (tmp_path / "t.parquet").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid x")
    with pytest.raises(UserError, match="git lfs pull"):
        list_parquet(tmp_path)
    path = written(tmp_path / "u.parquet", source_image=["a"], action=["open"])
    with pytest.raises(UserError, match="has no column target_image"):
        list_parquet(path)
    with pytest.raises(UserError, match=r"holds no \*\.parquet"):
        list_parquet(tmp_path / "nowhere")
