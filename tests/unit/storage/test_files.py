import errno
import hashlib
import os
import threading
from pathlib import Path

import pytest

from dynamics.core.errors import UserError
from dynamics.core.places import Place, StorePath
from dynamics.storage.files import (
    cache_folder,
    checkpoint_digest,
    create_bytes,
    damaged_files,
    list_files,
    local_copy,
    name_flushed,
    new_folder,
    remove_tree,
    sha256_file,
    write_bytes,
)


def test_write_makes_folders_and_leaves_only_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "table.parquet"
    write_bytes(path, b"one")
    write_bytes(path, b"two")
    assert path.read_bytes() == b"two"
    assert [entry.name for entry in path.parent.iterdir()] == ["table.parquet"]


def test_files_are_readable_by_others_as_the_umask_says(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        write_bytes(tmp_path / "file", b"x")
    finally:
        os.umask(old)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


def test_sha256_file_is_the_digest_of_the_bytes(tmp_path: Path) -> None:
    payload = os.urandom(3_000_000)
    write_bytes(tmp_path / "file", payload)
    assert sha256_file(tmp_path / "file") == hashlib.sha256(payload).hexdigest()


def test_create_keeps_the_first_content(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    assert create_bytes(path, b"first")
    assert not create_bytes(path, b"second")
    assert path.read_bytes() == b"first"
    assert [entry.name for entry in tmp_path.iterdir()] == ["manifest.json"]


def test_of_many_creators_exactly_one_wins(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    barrier = threading.Barrier(8)
    won: list[int] = []

    def create(number: int) -> None:
        barrier.wait()
        if create_bytes(path, str(number).encode() * 1000):
            won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert path.read_bytes() == str(won[0]).encode() * 1000


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
def test_full_disk_names_path_and_need_and_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    path = tmp_path / "table.parquet"
    write_bytes(path, b"old")

    def full(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    real_open = os.open
    with monkeypatch.context() as patched:
        if call == "open":
            # Folders still open: only the new file finds no room.
            patched.setattr(
                os, "open", lambda name, flags, *mode: full() if mode else real_open(name, flags)
            )
        else:
            patched.setattr(os, call, full)
        with pytest.raises(UserError, match=r"disk full: .*table\.parquet needs 12,345 bytes"):
            write_bytes(path, b"x" * 12_345)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["table.parquet"]


def test_other_disk_errors_keep_their_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "i/o error")

    monkeypatch.setattr(os, "write", broken)
    with pytest.raises(OSError, match="i/o error"):
        write_bytes(tmp_path / "file", b"x")


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real_write(descriptor, data[:7]))
    write_bytes(tmp_path / "file", b"0123456789" * 10)
    assert (tmp_path / "file").read_bytes() == b"0123456789" * 10


def test_a_file_system_without_hard_links_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EPERM, "not permitted")

    monkeypatch.setattr(os, "link", refused)
    with pytest.raises(UserError, match="no hard links"):
        create_bytes(tmp_path / "manifest.json", b"x")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(params=["path", "store"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A folder of either kind."""
    found: Place = request.getfixturevalue("s3") if request.param == "store" else tmp_path / "root"
    return found


def test_files_of_either_kind_are_written_created_listed_and_removed(root: Place) -> None:
    write_bytes(root / "a" / "table", b"one")
    write_bytes(root / "a" / "table", b"two")
    assert create_bytes(root / "a" / "b" / "manifest", b"first")
    assert not create_bytes(root / "a" / "b" / "manifest", b"second")
    assert sha256_file(root / "a" / "table") == hashlib.sha256(b"two").hexdigest()
    found = {str(place.relative_to(root)): place.read_bytes() for place in list_files(root)}
    assert found == {"a/table": b"two", "a/b/manifest": b"first"}
    remove_tree(root / "a" / "b")
    assert [place.name for place in list_files(root)] == ["table"]
    remove_tree(root / "absent")


def test_a_new_folder_replaces_the_old_one_whole(root: Place) -> None:
    place = root / "idm"
    write_bytes(place / "old.json", b"{}")

    def killed() -> None:
        with new_folder(place, "fit.json") as fresh:
            (fresh / "fit.json").write_text("torn")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed()
    assert [found.name for found in place.iterdir()] == ["old.json"]
    with new_folder(place, "fit.json") as fresh:
        (fresh / "fit.json").write_text("{}")
        (fresh / "sub").mkdir()
        (fresh / "sub" / "weights").write_bytes(b"w" * 7_000_000)
    assert sorted(str(found.relative_to(place)) for found in list_files(place)) == [
        "SHA256SUMS",
        "fit.json",
        "sub/weights",
    ]
    assert damaged_files(place) == []
    write_bytes(place / "sub" / "weights", b"w" * 6_999_999 + b"v")
    (place / "fit.json").unlink()
    assert damaged_files(place) == ["fit.json", "sub/weights"]


def test_a_local_copy_is_made_once_for_each_content(s3: StorePath) -> None:
    (s3 / "base" / "config.json").write(b"{}")
    (s3 / "base" / "sub" / "x").write(b"x")
    copy = local_copy(s3 / "base")
    assert copy.name == "base"
    assert (copy / "sub" / "x").read_bytes() == b"x"
    assert local_copy(s3 / "base") == copy
    assert local_copy(copy) == copy
    one = local_copy(s3 / "base" / "config.json")
    assert (one.name, one.read_bytes()) == ("config.json", b"{}")
    (s3 / "base" / "config.json").write(b"[]")
    assert (local_copy(s3 / "base") / "config.json").read_bytes() == b"[]"
    assert checkpoint_digest(s3 / "base") == checkpoint_digest(local_copy(s3 / "base"))
    assert not [entry for entry in cache_folder().iterdir() if entry.name.startswith(".")]
    with pytest.raises(UserError, match="nothing does not exist"):
        local_copy(s3 / "nothing")


@pytest.mark.parametrize(
    "name", ["._model.safetensors", "model (1).safetensors", "config - Copy.json", "README.md"]
)
def test_copies_beside_a_checkpoint_do_not_change_its_digest(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"x")
    before = checkpoint_digest(tmp_path)
    (tmp_path / name).write_bytes(b"y")
    assert checkpoint_digest(tmp_path) == before


def test_a_file_whose_flush_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    (tmp_path / "fresh.tmp").write_bytes(b"weights")
    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match=r"Input/output error: '.*fresh\.tmp'"):
        name_flushed(tmp_path / "fresh.tmp", tmp_path / "weights")
