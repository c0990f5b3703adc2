"""Durable, atomic files: a reader sees a complete file or none, also after a kill or power loss.

A write goes to a hidden temporary file in the same folder, is flushed to the disk, and only then
gets its name. A killed writer leaves at most one hidden ``.*.tmp`` file, which no reader lists.
"""

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dynamics.core.errors import UserError

_FULL = {errno.ENOSPC, errno.EDQUOT}
_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def checkpoint_digest(folder: Path) -> str:
    """sha256 over names and bytes of the files that decide what a checkpoint computes."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".json"):
            digest.update(f"{path.name}\x1f{sha256_file(path)}\x1e".encode())
    return digest.hexdigest()


def write_bytes(path: Path, payload: bytes) -> None:
    """Write or replace ``path`` at once and durably; makes missing folders.

    Raises:
        UserError: the disk is full.
    """
    with _written(path, payload) as temporary:
        os.replace(temporary, path)


def create_bytes(path: Path, payload: bytes) -> bool:
    """Create ``path`` durably unless it exists; of many writers exactly one gets True.

    Raises:
        UserError: the disk is full, or the file system has no hard links (they are what makes
            "create if absent" atomic together with the content).
    """
    with _written(path, payload) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            raise UserError(
                f"the file system of {path.parent} has no hard links; put run_dir on a local disk"
            ) from error
    return True


def name_flushed(fresh: Path, path: Path) -> None:
    """Durably give a file that was just written in ``path``'s folder its name."""
    _flush(fresh)
    os.replace(fresh, path)
    _flush(path.parent)


def make_folder(folder: Path) -> None:
    """``mkdir -p`` whose new entries survive a power loss."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _flush(folder.parent)


@contextmanager
def full_disk_named(path: Path, num_bytes: int) -> Iterator[None]:
    """Turn "no space left" into a `UserError` that names ``path`` and the bytes it needs."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise UserError(
            f"disk full: {path} needs {num_bytes:,} bytes and {_free_bytes(path):,} are free; "
            "make room and run the same command again, it resumes"
        ) from error


@contextmanager
def _written(path: Path, payload: bytes) -> Iterator[Path]:
    """A flushed temporary file beside ``path``; the body names it, then the folder is flushed."""
    temporary = path.parent / f".{path.name}.{secrets.token_hex(8)}.tmp"
    with full_disk_named(path, len(payload)):
        make_folder(path.parent)
        try:
            _write_flushed(temporary, payload)
            yield temporary
        finally:
            # Gone already after os.replace; a second name of the file after os.link.
            with suppress(FileNotFoundError):
                temporary.unlink()
            _flush(path.parent)


def _write_flushed(path: Path, payload: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        rest = memoryview(payload)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush(path: Path) -> None:
    """Bring a file's bytes, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free_bytes(path: Path) -> int:
    existing = next(folder for folder in path.absolute().parents if folder.is_dir())
    return shutil.disk_usage(existing).free
