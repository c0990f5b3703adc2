"""Durable, atomic files: a reader sees a complete file or none, also after a kill or power loss.

On this machine a write goes to a hidden temporary file in the same folder, is flushed to the disk,
and only then gets its name. A killed writer leaves at most one hidden ``.*.tmp`` file, which no
reader lists. In a store an object appears whole by itself.
"""

import errno
import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from dynamics.core.errors import UserError
from dynamics.core.places import Place, StorePath, on_this_machine

if TYPE_CHECKING:
    from obstore import ObjectMeta

_FULL = {errno.ENOSPC, errno.EDQUOT}
SUMS = "SHA256SUMS"
"""File of a folder with the digests of its other files, for ``sha256sum --check`` too."""
_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}


def sha256_file(path: Place) -> str:
    """Hex sha256 of a file's bytes, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_size(path: Place) -> int:
    """Bytes of a file; raises FileNotFoundError as reading it would."""
    return path.meta()["size"] if isinstance(path, StorePath) else path.stat().st_size


def checkpoint_digest(folder: Place) -> str:
    """sha256 over names and bytes of the files that decide what a checkpoint computes.

    A process reads a file once, unless it was written since.
    """
    digest = hashlib.sha256()
    for path in sorted(local_copy(folder).iterdir()):
        # Hidden ones are other systems' copies, as macOS' ._model.safetensors; those with a blank
        # are people's and browsers', as "model (1).safetensors" and "config - Copy.json".
        is_copy = path.name.startswith(".") or " " in path.name
        if path.suffix in (".safetensors", ".json") and not is_copy:
            digest.update(f"{path.name}\x1f{_sha256_now(path)}\x1e".encode())
    return digest.hexdigest()


def adapter_digest(base: Place, adapter: Place) -> str:
    """sha256 over base and adapter files, which decide the model's output."""
    return hashlib.sha256(
        (checkpoint_digest(base) + checkpoint_digest(adapter)).encode()
    ).hexdigest()


def _sha256_now(path: Path) -> str:
    """Digest of a file that may be written again; empty when there is none."""
    try:
        found = path.stat()
    except (OSError, ValueError):  # no such file, or no name that one can have
        return ""
    return _sha256_of_version(path, found.st_ino, found.st_size, found.st_mtime_ns)


@lru_cache(1024)
def _sha256_of_version(path: Path, *version: int) -> str:
    return sha256_file(path)


def write_bytes(path: Place, payload: bytes) -> None:
    """Write or replace ``path`` at once and durably; makes missing folders.

    Raises:
        UserError: the disk is full, or the store refuses.
    """
    if isinstance(path, StorePath):
        path.write(payload)
        return
    with _written(path, payload) as temporary:
        os.replace(temporary, path)


def create_bytes(path: Place, payload: bytes) -> bool:
    """Create ``path`` durably unless it exists; of many writers exactly one gets True.

    Raises:
        UserError: the disk is full, or the file system has no hard links (they are what makes
            "create if absent" atomic together with the content), or the store refuses.
    """
    if isinstance(path, StorePath):
        return path.create(payload)
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


def list_files(folder: Place) -> Iterator[Place]:
    """Every file below a folder, found as it is asked for; of a store in the order of names."""
    if isinstance(folder, StorePath):
        yield from (place for place, _ in folder.files())
        return
    for parent, _, names in os.walk(folder):
        yield from (Path(parent, name) for name in names)


def remove_tree(folder: Place) -> None:
    """Delete a folder with all that lies below; an absent one is left."""
    if isinstance(folder, StorePath):
        folder.delete([place for place, _ in folder.files()])
    else:
        shutil.rmtree(folder, ignore_errors=True)


def remove_unfinished(folder: Path) -> None:
    """Delete the hidden files and folders that killed writers left below a folder.

    Only while nobody writes there.
    """
    for path in list(folder.rglob(".*.tmp")):
        if path.is_dir():
            remove_tree(path)
        else:
            with suppress(OSError):
                path.unlink()


def local_copy(place: Place) -> Path:
    """A file or folder of a store on this machine; a path is returned as it is.

    Copies stay below ``$DYNAMICS_CACHE`` (default ``~/.cache/dynamics``), under names that change
    with the store's objects; any number of processes may ask at the same time.

    Raises:
        UserError: there is nothing at ``place``, the disk is full, or the store refuses.
    """
    if isinstance(place, Path):
        return place
    objects = {str(at.relative_to(place)): (at, meta) for at, meta in place.files()}
    is_folder = bool(objects)
    if not is_folder:
        try:
            objects[place.name] = (place, place.meta())
        except FileNotFoundError as error:
            raise UserError(f"{place} does not exist; check the name") from error
    versions = [(name, meta["e_tag"], meta["size"]) for name, (_, meta) in sorted(objects.items())]
    key = hashlib.sha256(repr((str(place), versions)).encode()).hexdigest()[:32]
    entry = cache_folder() / key
    if not entry.is_dir():
        _fetch(objects, entry, place.name if is_folder else "")
    return entry / place.name


def cache_folder() -> Path:
    """Where copies of what lies in stores are kept on this machine."""
    chosen = os.environ.get("DYNAMICS_CACHE")
    try:
        return Path(on_this_machine(chosen)) if chosen else Path.home() / ".cache" / "dynamics"
    except ValueError as error:
        raise UserError(f"DYNAMICS_CACHE: {error}") from error


def local_state(place: Place) -> Path:
    """The folder of a run's files that need a file system: the place itself, or one of the cache.

    Nothing in it is needed by another machine.
    """
    if isinstance(place, Path):
        return place
    folder = cache_folder() / "runs" / hashlib.sha256(str(place).encode()).hexdigest()[:32]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _fetch(objects: dict[str, tuple[StorePath, "ObjectMeta"]], entry: Path, below: str) -> None:
    """Copy objects to a new entry of the cache, which appears whole or not at all."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=entry.parent, prefix=".fetch-") as scratch:
        fresh = Path(scratch) / entry.name
        for name, (place, meta) in objects.items():
            path = fresh / below / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with full_disk_named(path, meta["size"]):
                place.fetch(path, meta["e_tag"])
        try:
            fresh.rename(entry)
        except OSError:
            if not entry.is_dir():  # else another process was first
                raise


@contextmanager
def new_folder(place: Place, last: str) -> Iterator[Path]:
    """A local folder for the body to fill, which then replaces ``place``.

    Its files, with their digests in `SUMS`, are on the disk before it gets its name, and an old
    folder is moved away before it is deleted: a kill leaves the old one, none, or the new one. In a
    store its files are written one by one, the one named ``last`` after all others: while that is
    there, the folder is whole.
    """
    if isinstance(place, StorePath):
        with tempfile.TemporaryDirectory(prefix="dynamics-") as scratch:
            yield Path(scratch)
            (place / last).unlink(missing_ok=True)
            remove_tree(place)
            for path in sorted(_summed(Path(scratch)), key=lambda path: path.name == last):
                (place / path.relative_to(scratch)).write(path)
        return
    fresh, aside = (place.with_name(f".{place.name}.{suffix}.tmp") for suffix in ("new", "old"))
    remove_tree(fresh)
    make_folder(place.parent)
    fresh.mkdir()
    yield fresh
    _summed(fresh)
    os.sync()  # many files: one flush of all instead of one each
    remove_tree(aside)
    if place.exists():
        place.rename(aside)
    fresh.rename(place)
    _flush(place.parent)
    remove_tree(aside)


def _summed(folder: Path) -> list[Path]:
    """All files of a folder, with their digests in a new one."""
    sums = folder / SUMS
    sums.unlink(missing_ok=True)  # a copy of a base's own
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{sha256_file(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    sums.write_text("".join(lines))
    return [*files, sums]


def damaged_files(folder: Place) -> list[str]:
    """The files that `new_folder` left in a folder and that are missing or have other bytes.

    None are named in a folder of an older version. A process reads a file once, unless it was
    written since.
    """
    local = local_copy(folder)
    if not (local / SUMS).is_file():
        return []
    text = (local / SUMS).read_bytes().decode(errors="replace")
    listed = [line.partition("  ") for line in text.splitlines()]
    return [name for sha256, _, name in listed if _sha256_now(local / name) != sha256]


def check_store(place: Place) -> None:
    """Refuse a store in which a run cannot lie, by creating an object twice; a path is left.

    Raises:
        UserError: the store does not answer, refuses, or creates what exists.
    """
    if not isinstance(place, StorePath):
        return
    probe = place / "lock" / f"probe-{secrets.token_hex(8)}"
    probe.create(b"1")
    created_twice = probe.create(b"2")
    probe.unlink(missing_ok=True)
    if created_twice:
        raise UserError(
            f"the store of {place} replaces an object that shall only be created where it is "
            "absent (If-None-Match: *), so that labels could get lost; choose a store that does "
            "that, or a path"
        )


@contextmanager
def fetched(place: Place) -> Iterator[Path]:
    """A file on this machine while the body runs; a path is given as it is.

    Raises:
        FileNotFoundError: the store has no such object.
        UserError: the disk is full, or the store refuses.
    """
    if isinstance(place, Path):
        yield place
        return
    with tempfile.TemporaryDirectory(prefix="dynamics-") as scratch:
        path = Path(scratch, place.name)
        with full_disk_named(path, 0):
            place.fetch(path)
        yield path


@contextmanager
def local_scratch(folder: Place) -> Iterator[Path]:
    """The folder from which `name_flushed` takes files that shall lie in ``folder``."""
    if isinstance(folder, Path):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="dynamics-") as scratch:
        yield Path(scratch)


def name_flushed(fresh: Path, path: Place) -> None:
    """Durably give a file its name that was just written in the `local_scratch` of its folder."""
    if isinstance(path, StorePath):
        path.write(fresh)
        return
    _flush(fresh)
    os.replace(fresh, path)
    _flush(path.parent)


def make_folder(folder: Place) -> None:
    """``mkdir -p`` whose new entries survive a power loss; a store needs none."""
    if isinstance(folder, StorePath) or folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _flush(folder.parent)


@contextmanager
def full_disk_named(path: Path, num_bytes: int) -> Iterator[None]:
    """Turn "no space left" into a `UserError` that names ``path`` and the bytes it needs.

    Other errors of the disk get the name: calls on open files do not tell it.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            error.filename = error.filename or str(path)
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
    """Bring a file's bytes, or a folder's entries, to the disk; an error names it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(descriptor)


def _free_bytes(path: Path) -> int:
    existing = next(folder for folder in path.absolute().parents if folder.is_dir())
    return shutil.disk_usage(existing).free
