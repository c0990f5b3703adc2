import os

import pytest

from dynamics.errors import UserError
from dynamics.video.sources import SOURCES, list_folder


def test_clips_are_sorted_and_the_folder_is_the_class(tmp_path):
    for name in ("b/two.MKV", "b/one.mp4", "a/deep/x.webm", "top.avi", "b/notes.txt", ".h/c.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    listing = SOURCES["folder"](tmp_path)
    assert [(clip.name, clip.clip_class) for clip in listing.clips] == [
        ("a/deep/x.webm", "deep"),
        ("b/one.mp4", "b"),
        ("b/two.MKV", "b"),
        ("top.avi", ""),
    ]
    assert listing.refused == ()


def test_links_that_leave_the_folder_are_refused(tmp_path):
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    root.mkdir()
    (outside / "secret.mp4").write_bytes(b"x")
    (root / "own.mp4").write_bytes(b"x")
    (root / "inside.mp4").symlink_to(root / "own.mp4")
    (root / "outside.mp4").symlink_to(outside / "secret.mp4")
    (root / "dangling.mp4").symlink_to(root / "nothing.mp4")
    (root / "loop.mp4").symlink_to(root / "loop.mp4")
    (root / "folder").symlink_to(outside)
    listing = list_folder(root)
    assert [clip.name for clip in listing.clips] == ["inside.mp4", "own.mp4"]
    assert listing.refused == (
        ("dangling.mp4", "symlink"),
        ("folder", "symlink"),
        ("loop.mp4", "symlink"),
        ("outside.mp4", "symlink"),
    )


def test_pipes_and_undecodable_names_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    with open(os.fsencode(tmp_path) + b"/\xff.mp4", "wb"):
        pass
    assert list_folder(tmp_path).refused == (
        ("\\udcff.mp4", "file_name"),
        ("pipe.mp4", "not_a_file"),
    )


def test_root_may_be_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.mp4").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert [clip.name for clip in list_folder(tmp_path / "link").clips] == ["a.mp4"]


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere does not exist.*pool\.path"):
        list_folder(tmp_path / "nowhere")


def test_file_in_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"x")
    with pytest.raises(UserError, match=r"a\.mp4 is a file"):
        list_folder(tmp_path / "a.mp4")


def test_folder_without_videos_says_what_counts_as_video(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"holds no videos \(avi, mkv, mp4, webm\)"):
        list_folder(tmp_path)
