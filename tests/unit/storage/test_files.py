import errno
import hashlib
import os
import threading
from pathlib import Path

import pytest

from dynamics.core.errors import UserError
from dynamics.storage.files import create_bytes, sha256_file, write_bytes


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
