import gzip
import io
import json
import os
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from dynamics.core.errors import UserError
from dynamics.data.video.sources import (
    MAX_SIDECAR_BYTES,
    SOURCES,
    Clip,
    Found,
    Skipped,
    list_folder,
    list_kinetics700,
    list_moments,
    list_ucf101,
    list_webdataset,
)
from tests.made_data import add_member


def touched(root: Path, names: Sequence[str]) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def clips(found: Iterable[Found]) -> list[Clip]:
    return [one for one in found if isinstance(one, Clip)]


def refused(found: Iterable[Found]) -> list[tuple[str, str]]:
    return [(one.name, one.reason) for one in found if isinstance(one, Skipped)]


def classes(found: Iterable[Found]) -> dict[str, str]:
    return {clip.name: clip.clip_class for clip in clips(found)}


def test_clips_are_sorted_and_the_folder_is_the_class(tmp_path):
    for name in ("b/two.MKV", "b/one.mp4", "a/deep/x.webm", "top.avi", "b/notes.txt", ".h/c.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    listing = list(SOURCES["folder"](tmp_path))
    assert [(clip.name, clip.clip_class) for clip in clips(listing)] == [
        ("a/deep/x.webm", "deep"),
        ("b/one.mp4", "b"),
        ("b/two.MKV", "b"),
        ("top.avi", ""),
    ]
    assert refused(listing) == [(".h", "skipped hidden"), ("b/notes.txt", "skipped .txt")]


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
    listing = list(list_folder(root))
    assert [clip.name for clip in clips(listing)] == ["inside.mp4", "own.mp4"]
    assert refused(listing) == [
        ("dangling.mp4", "dangling_link"),
        ("folder", "symlink"),
        ("loop.mp4", "dangling_link"),
        ("outside.mp4", "symlink"),
    ]


def test_links_into_an_allowed_folder_are_followed_and_loops_end(tmp_path, monkeypatch):
    disk, root = tmp_path / "disk", tmp_path / "root"
    touched(disk, ["cats/1.mp4"])
    touched(root, ["dogs/2.mp4", ".store/birds/3.mp4"])
    (root / "cats").symlink_to(disk / "cats")
    (root / "birds").symlink_to(root / ".store" / "birds")
    (root / "dogs" / "again").symlink_to(root)
    (disk / "cats" / "up").symlink_to(disk)
    assert classes(list_folder(root)) == {"dogs/2.mp4": "dogs", "birds/3.mp4": "birds"}
    monkeypatch.setenv("DYNAMICS_LINKS", f"/nowhere:{disk}")
    listing = list(list_folder(root))
    assert classes(listing) == {
        "birds/3.mp4": "birds",
        "cats/1.mp4": "cats",
        "cats/up/cats/1.mp4": "cats",
        "dogs/2.mp4": "dogs",
    }
    assert ("dogs/again", "skipped link to what is listed") in refused(listing)


def test_pipes_and_undecodable_names_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    with open(os.fsencode(tmp_path) + b"/\xff.mp4", "wb"):
        pass
    assert sorted(refused(list_folder(tmp_path))) == [
        ("\\udcff.mp4", "file_name"),
        ("pipe.mp4", "not_a_file"),
    ]


def test_root_may_be_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.mp4").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert [clip.name for clip in list_folder(tmp_path / "link")] == ["a.mp4"]


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere does not exist.*pool\.path"):
        list_folder(tmp_path / "nowhere")


def test_file_in_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"x")
    with pytest.raises(UserError, match=r"a\.mp4 is a file"):
        list_folder(tmp_path / "a.mp4")


def test_folder_without_videos_says_what_counts_as_video(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"holds no videos \(.*mkv, mov, mp4.*\), but 1 \.txt"):
        list(list_folder(tmp_path))


def test_ucf101_reads_the_class_from_the_name_and_refuses_other_names(tmp_path):
    names = [
        "HandstandPushups/v_HandStandPushups_g01_c01.avi",
        "v_YoYo_g25_c05.avi",
        "Biking/holiday.avi",
        "Biking/v_Biking_g01.avi",
    ]
    listing = list(list_ucf101(touched(tmp_path, names)))
    assert classes(listing) == {names[0]: "HandStandPushups", names[1]: "YoYo"}
    assert refused(listing) == [
        ("Biking/holiday.avi", "clip_name"),
        ("Biking/v_Biking_g01.avi", "clip_name"),
    ]


def test_a_folder_without_clips_of_ucf101_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"v_Class_g01_c01\.avi.*pool\.source=folder"):
        list(list_ucf101(touched(tmp_path, ["a/holiday.avi"])))


def test_kinetics_classes_are_folders_with_blanks_and_brackets_and_splits_are_none(tmp_path):
    names = {
        "train/passing American football (in game)/-aBcDeFgHiJ_000012_000022.mp4": (
            "passing American football (in game)"
        ),
        "val/riding_a_bike/0aBcDeFgHiJ_000000_000010.mp4": "riding a bike",
        "test/1aBcDeFgHiJ_000000_000010.mp4": "",
        "2aBcDeFgHiJ_000000_000010.mp4": "",
    }
    assert classes(list_kinetics700(touched(tmp_path, list(names)))) == names


def test_moments_classes_have_blanks_for_plus_signs(tmp_path):
    names = {
        "training/adult+male+singing/yt-1_2.mp4": "adult male singing",
        "validation/closing/flickr-1-2-3.mp4": "closing",
    }
    assert classes(list_moments(touched(tmp_path, list(names)))) == names


def test_a_tar_s_clips_have_the_class_of_their_json_or_cls_or_folder(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, payload in {
            "0.mp4": b"film0",
            "0.json": json.dumps({"class": "playing guitar"}).encode(),
            "1.cls": b"7\n",
            "1.mp4": b"film1",
            "jumping/2.front.mp4": b"film2",
            "3.mp4": b"film3",
            "3.json": b"{",
            "4.mp4": b"film4",
            "4.json": json.dumps({"label": "a/b\x1b[31m"}).encode(),
            "5.mp4": b"film5",
            "5.json": b" " * (MAX_SIDECAR_BYTES + 1),
            "6.json": b'{"class": "no film"}',
            "notes": b"x",
        }.items():
            add_member(tar, name, payload)
    listing = list(list_webdataset(tmp_path))
    assert classes(listing) == {
        "a.tar/0.mp4": "playing guitar",
        "a.tar/1.mp4": "7",
        "a.tar/3.mp4": "",
        "a.tar/4.mp4": "a b?[31m",
        "a.tar/5.mp4": "",
        "a.tar/jumping/2.front.mp4": "jumping",
    }
    whole = (tmp_path / "a.tar").read_bytes()
    for clip in clips(listing):
        start, size = clip.place
        assert whole[start : start + size].startswith(b"film")
        assert size == 5


def test_tar_members_that_are_no_plain_files_are_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, kind in (
            ("link.mp4", tarfile.SYMTYPE),
            ("hard.mp4", tarfile.LNKTYPE),
            ("pipe.mp4", tarfile.FIFOTYPE),
            ("device.mp4", tarfile.CHRTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        add_member(tar, "../../escape.mp4", b"film")
        add_member(tar, "/etc/absolute.mp4", b"film")
        add_member(tar, "./0.mp4", b"film")
    listing = list(list_webdataset(tmp_path))
    assert [clip.name for clip in clips(listing)] == ["a.tar/./0.mp4"]
    assert dict(refused(listing)) == {
        "a.tar/../../escape.mp4": "path_outside",
        "a.tar//etc/absolute.mp4": "path_outside",
        "a.tar/device.mp4": "tar_member",
        "a.tar/hard.mp4": "tar_member",
        "a.tar/link.mp4": "tar_member",
        "a.tar/pipe.mp4": "tar_member",
    }


def test_broken_tars_are_refused_and_plain_and_packed_ones_are_read(tmp_path):
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        add_member(tar, "0.mp4", b"film" * 1000)
        add_member(tar, "1.mp4", b"film" * 1000)
    (tmp_path / "good.tar").write_bytes(sink.getvalue())
    (tmp_path / "cut.tar").write_bytes(sink.getvalue()[:6000])
    (tmp_path / "packed.tar").write_bytes(gzip.compress(sink.getvalue()))
    (tmp_path / "text.tar").write_text("not a tar")
    (tmp_path / "out.tar").symlink_to("/etc/hostname")
    listing = list(list_webdataset(tmp_path))
    assert [clip.name for clip in clips(listing)] == [
        "cut.tar/0.mp4",
        "good.tar/0.mp4",
        "good.tar/1.mp4",
        "packed.tar/0.mp4",
        "packed.tar/1.mp4",
    ]
    assert dict(refused(listing)) == {
        "cut.tar": "tar_unreadable",
        "cut.tar/1.mp4": "tar_truncated",
        "out.tar": "symlink",
        "text.tar": "tar_unreadable",
    }


def test_folders_are_walked_in_the_order_of_the_paths(tmp_path):
    names = ["a-b.mp4", "a/c.mp4", "a/b/d.mp4", "a.mp4", "a0.mp4", "b.tar.mp4"]
    found = [clip.name for clip in list_folder(touched(tmp_path, names))]
    assert found == sorted(names)


def test_a_folder_is_listed_as_it_is_read(tmp_path, monkeypatch):
    opened = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: opened.append(path) or scandir(path))
    listing = list_folder(touched(tmp_path, ["a/one.mp4", "b/two.mp4"]))
    assert next(listing).name == "a/one.mp4"
    assert opened == [tmp_path, tmp_path / "a"]


def test_a_changed_file_is_another_version(tmp_path):
    touched(tmp_path, ["one.mp4", "two.mp4"])
    before = {clip.name: clip.version for clip in clips(list_folder(tmp_path))}
    (tmp_path / "one.mp4").write_bytes(b"xy")
    after = {clip.name: clip.version for clip in clips(list_folder(tmp_path))}
    assert before["one.mp4"] != after["one.mp4"]
    assert before["two.mp4"] == after["two.mp4"]
