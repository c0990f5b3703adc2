"""What ``dynamics ingest`` tells about a folder of which it can use nothing."""

import pytest

from dynamics.cli.ingest import ingest
from dynamics.core.errors import UserError


def test_rejects_are_named_also_when_the_folder_is_refused(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.mp4").write_bytes(b"")
    (folder / "b\nc.mp4").write_bytes(b"<html>404 not found")
    (folder / "cut.mov").write_bytes(b"\0\0\0\x20ftypqt  " + bytes(64))
    (folder / "more.zip").write_bytes(b"PK")
    rejects = tmp_path / "rejects.txt"
    with pytest.raises(UserError, match="3 of 3 clips"):
        ingest(folder, out=tmp_path / "p.parts", rejects=rejects)
    reasons = [line.split("\t") for line in rejects.read_text().splitlines()]
    assert [line[:2] for line in reasons] == [
        ["unreadable", "a.mp4"],
        ["unreadable", "b?c.mp4"],
        ["unreadable", "cut.mov"],
        ["skipped .zip", "more.zip"],
    ]
    details = [detail for _, _, detail in reasons]
    assert details[0] == "an empty file"
    assert "<html>" in details[1]
    assert "without its index" in details[2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "rejects.txt"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a.gif", "ffmpeg"),
        ("a.zip", "unpack"),
        ("a.tar", "--source webdataset"),
        ("a.txt", "1 .txt"),
    ],
)
def test_files_that_are_no_videos_are_named_with_the_way_out(tmp_path, name, said):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=said):
        ingest(tmp_path, out=tmp_path / "p.parts")
