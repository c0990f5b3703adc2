"""Sources of clips: files to read, and files refused unread, as they are found.

A source is a function from a folder to an iterator, in the order of the names; of a folder of any
size only a part is in memory. Sources differ in what a clip's class is, which the class-stratified
filter (`StratifiedTopKRule`, the paper's Algorithm 1) takes turns by.
"""

import gzip
import json
import os
import re
import stat
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePath, PurePosixPath
from typing import IO, cast

from dynamics.core.config import PoolPart
from dynamics.core.errors import UserError, check_machine
from dynamics.core.places import Place
from dynamics.data.links import Links
from dynamics.data.refusals import SKIPPED, way_out

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".3gp", ".3g2", ".avi", ".webm", ".mkv", ".flv"}
    | {".ts", ".mts", ".m2ts", ".mpg", ".mpeg"}
)
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
_LABELS = (".json", ".cls")
MAX_SIDECAR_BYTES = 1 << 20
"""Largest json or cls member of a tar that is read for a class."""
MAX_CLIP_BYTES = 4 << 30
_WHERE = "pool.path (of ingest and annotate: the argument)"

_UCF101 = re.compile(r"v_(?P<clip_class>[A-Za-z0-9]+)_g\d+_c\d+")
_SPLITS = frozenset(
    {"train", "training", "val", "validate", "validation", "test", "testing", "videos"}
)
"""Folders of the public data sets that hold class folders, or clips without a class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A video file of a source."""

    path: Place
    """Absolute; the file itself, or the tar that holds it."""
    name: str
    """Path relative to the source's root, with ``/``."""
    clip_class: str
    """Class of the clip in its source, ``""`` when it has none."""
    version: str
    """Another one when the file's bytes have changed."""
    place: tuple[int, int] | None = None
    """First byte and size of a clip inside a tar."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A file that is never opened."""

    name: str
    reason: str
    """``symlink``, ``dangling_link``, ``not_a_file`` or ``file_name``; in tars also
    ``tar_unreadable``, ``tar_truncated``, ``tar_member`` or ``path_outside``; `SKIPPED` and a
    suffix for what is no video by its name."""

    @property
    def is_other(self) -> bool:
        """True for files that nobody would take for a video."""
        return self.reason.startswith(SKIPPED)


Found = Clip | Skipped


def list_folder(root: Place) -> Iterator[Found]:
    """Videos in a folder and its subfolders; the class is the folder that holds the clip.

    Files are told by their suffix; others and what is hidden are skipped. Links are followed as
    `Links` allows, folders within the root once, where they lie. Pipes, devices, and names that are
    not UTF-8 are refused.

    Raises:
        UserError: the folder is missing, is no folder, or holds no video.
    """
    kinds = ", ".join(sorted(suffix[1:] for suffix in VIDEO_SUFFIXES))
    nothing = f"video folder {root} holds no videos ({kinds})"
    return _some(find_files(checked_root(root), VIDEO_SUFFIXES), nothing)


def list_ucf101(root: Place) -> Iterator[Found]:
    """UCF-101 as distributed: ``Class/v_Class_g01_c01.avi``; the class is in the file's name.

    Other videos are refused as ``clip_name``.

    Raises:
        UserError: as `list_folder`, or no file is named so.
    """
    named = False
    for found in list_folder(root):
        if isinstance(found, Skipped):
            yield found
        elif match := _UCF101.fullmatch(PurePosixPath(found.name).stem):
            named = True
            yield replace(found, clip_class=match["clip_class"])
        else:
            yield Skipped(name=found.name, reason="clip_name")
    if not named:
        raise UserError(
            f"video folder {root} holds no UCF-101 clips (v_Class_g01_c01.avi); unpack UCF101.rar "
            "of https://www.crcv.ucf.edu/data/UCF101.php there, or set pool.source=folder (of "
            "ingest: --source folder)"
        )


def list_kinetics700(root: Place) -> Iterator[Found]:
    """Kinetics: ``train/playing guitar/ID_000010_000020.mp4``; the class is the folder's name.

    Some copies write ``_`` for the blanks of class names; the clips of the test split have no
    class.

    Raises:
        UserError: as `list_folder`.
    """
    return _classes(list_folder(root), "_")


def list_moments(root: Place) -> Iterator[Found]:
    """Moments in Time: ``training/adult+male+singing/CLIP.mp4``; the class is the folder's name.

    Raises:
        UserError: as `list_folder`.
    """
    return _classes(list_folder(root), "+")


def list_webdataset(root: Place) -> Iterator[Found]:
    """Tar shards whose members share a key: ``000123.mp4``, ``000123.json``, ``000123.cls``.

    Tars may be compressed with gzip; a clip of such a one is found by reading all before it.

    A clip's class is ``class`` or ``label`` of its json, else the text of its cls, else the folder
    in its key. Only the headers and these small members are read here, of one tar at a time. Links,
    devices and whatever else is no plain member are refused, and names that lead out of the tar.

    Raises:
        UserError: the folder is missing, is no folder, or holds no tar with a video in it.
    """
    nothing = f"video folder {root} holds no tar with videos in it"
    return _some(_in_tars(checked_root(root)), nothing)


Source = Callable[[Place], Iterator[Found]]

SOURCES: dict[str, Source] = {
    "folder": list_folder,
    "ucf101": list_ucf101,
    "kinetics700": list_kinetics700,
    "moments": list_moments,
    "webdataset": list_webdataset,
}


def list_clips(part: PoolPart) -> Iterator[Clip]:
    """The clips of a pool's folder, without what is refused.

    Raises:
        UserError: the folder is missing or holds no video.
    """
    return (found for found in SOURCES[part.source](part.path) if isinstance(found, Clip))


def clips_by_path(parts: Sequence[PoolPart]) -> dict[str, Clip]:
    """Clips of a pool by ``clip_path``, which begins with the folder's name if there are several.

    Raises:
        UserError: a folder is missing or holds no video.
    """
    return {
        f"{part.name}/{clip.name}" if len(parts) > 1 else clip.name: clip
        for part in parts
        for clip in list_clips(part)
    }


def checked_root(root: Place) -> Place:
    """The folder without links.

    Raises:
        UserError: it is missing or no folder.
    """
    if not root.exists():
        raise UserError(f"video folder {root} does not exist; set {_WHERE} to a folder of videos")
    if not root.is_dir():
        raise UserError(f"video folder {root} is a file; set {_WHERE} to the folder that holds it")
    return root.resolve() if isinstance(root, Path) else root


def find_files(root: Place, suffixes: Iterable[str]) -> Iterator[Found]:
    """Files by suffix, in any case, under a folder without links; rules as `list_folder`."""
    wanted = tuple(suffixes)
    if isinstance(root, Path):
        yield from _in_folder(root, _Walk(root, wanted))
        return
    for path, meta in root.files():
        name = path.relative_to(root)
        if any(part.startswith(".") for part in name.parts):
            yield Skipped(name=str(name), reason=f"{SKIPPED}hidden")
        elif not path.name.lower().endswith(wanted):
            yield _other(str(name))
        else:
            yield _clip(path, name, str(meta["e_tag"]))


def _other(name: str) -> Skipped:
    suffix = PurePosixPath(name).suffix.lower()
    return Skipped(name=name, reason=f"{SKIPPED}{suffix or 'without suffix'}")


class _Walk:
    """A walk over a folder."""

    def __init__(self, root: Path, suffixes: tuple[str, ...]) -> None:
        self.root = root
        self.suffixes = suffixes
        self.links = Links(root)
        self._entered: set[str] = set()

    def enters(self, folder: Path) -> bool:
        """True for a linked folder that is allowed and listed neither elsewhere nor before."""
        target = os.path.realpath(folder)
        listed = self.links.lists(target) or target in self._entered
        if listed or not self.links.allow(target):
            return False
        self._entered.add(target)
        return True

    def name(self, path: Path) -> str:
        """A printable name of a file."""
        return path.relative_to(self.root).as_posix().encode(errors="backslashreplace").decode()


def _in_folder(folder: Path, walk: _Walk) -> Iterator[Found]:
    try:
        entries = _entries(folder)
    except OSError as error:
        check_machine(error)
        yield Skipped(name=walk.name(folder), reason="unreadable")
        return
    for entry in entries:
        path = folder / entry.name
        if entry.name.startswith("."):
            yield Skipped(name=walk.name(path), reason=f"{SKIPPED}hidden")
        elif _is_folder(entry):
            if not entry.is_symlink() or walk.enters(path):
                yield from _in_folder(path, walk)
            else:
                yield Skipped(name=walk.name(path), reason=_link_reason(path, walk))
        elif not entry.name.lower().endswith(walk.suffixes):
            yield _other(walk.name(path))
        else:
            status = _status(path, walk)
            if isinstance(status, str):
                yield Skipped(name=walk.name(path), reason=status)
            else:
                version = f"{status.st_size}-{status.st_mtime_ns}"
                yield _clip(path, path.relative_to(walk.root), version)


def _link_reason(folder: Path, walk: _Walk) -> str:
    """The reason why a linked folder is not entered."""
    allowed = walk.links.allow(os.path.realpath(folder))
    return f"{SKIPPED}link to what is listed" if allowed else "symlink"


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What lies right in a folder, in the order of the paths: those below ``a/`` after ``a-b``."""
    with os.scandir(folder) as found:
        return sorted(found, key=lambda entry: entry.name + "/" * _is_folder(entry))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False


def _clip(path: Place, name: PurePath, version: str) -> Clip:
    clip_class = name.parts[-2] if len(name.parts) > 1 else ""
    return Clip(path=path, name=name.as_posix(), clip_class=clip_class, version=version)


def _status(path: Path, walk: _Walk) -> os.stat_result | str:
    """A file's status, or the reason why it is refused."""
    try:
        path.relative_to(walk.root).as_posix().encode()
    except UnicodeEncodeError:
        return "file_name"
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # a loop of links leads to nothing, too
        check_machine(error)
        return "dangling_link"
    if not walk.links.allow(str(target)):
        return "symlink"
    status = target.stat()
    # A pipe named clip.mp4 would block its reader for ever.
    return status if stat.S_ISREG(status.st_mode) else "not_a_file"


def _some(listing: Iterator[Found], nothing: str) -> Iterator[Found]:
    """The listing; raises when it holds nothing but files that are no videos."""
    others: Counter[str] = Counter()
    some = False
    for found in listing:
        if isinstance(found, Skipped) and found.is_other:
            others[found.reason.removeprefix(SKIPPED)] += 1
        else:
            some = True
        yield found
    if not some:
        held = ", ".join(
            f"{count:,} {kind}{way_out(SKIPPED + kind)}" for kind, count in others.most_common(5)
        )
        raise UserError(f"{nothing}{f', but {held}' if held else ''}; check {_WHERE}")


def _classes(listing: Iterator[Found], blank: str) -> Iterator[Found]:
    """Class folders, with ``blank`` read as a blank; a split's own folder is no class."""
    for found in listing:
        if isinstance(found, Clip):
            is_split = found.clip_class.lower() in _SPLITS
            clip_class = "" if is_split else found.clip_class.replace(blank, " ")
            yield replace(found, clip_class=clip_class)
        else:
            yield found


def _in_tars(root: Place) -> Iterator[Found]:
    for shard in find_files(root, TAR_SUFFIXES):
        if isinstance(shard, Clip):
            yield from sorted(_in_tar(shard), key=lambda found: found.name)
        else:
            yield shard


def _in_tar(shard: Clip) -> list[Found]:
    """Clips of a shard, and what is refused; names begin with the shard's."""
    clips: list[tuple[str, Clip]] = []
    classes: dict[str, str] = {}
    refused: list[Found] = []
    try:
        # "r:" opens plain tars only: `open_tar` has undone the compression.
        with open_tar(shard.path) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            size = None if isinstance(stream, gzip.GzipFile) else stream.seek(0, os.SEEK_END)
            for member, key, suffix in _members(tar):
                name = plain_text(f"{shard.name}/{member.name}")
                if key.rpartition("/")[2] == "":
                    refused.append(Skipped(name=name, reason=f"{SKIPPED}hidden"))
                elif suffix in VIDEO_SUFFIXES:
                    if reason := _member_refusal(member, size):
                        refused.append(Skipped(name=name, reason=reason))
                        continue
                    place = (member.offset_data, member.size)
                    clips.append((key, replace(shard, name=name, place=place)))
                elif label := _label(tar, member, suffix):
                    classes[key] = label
                elif suffix not in _LABELS:
                    refused.append(_other(name))
    except (tarfile.TarError, OSError, ValueError, EOFError, zlib.error) as error:
        check_machine(error)
        refused.append(Skipped(name=shard.name, reason="tar_unreadable"))
    return refused + [
        replace(clip, clip_class=classes.get(key, PurePosixPath(key).parent.name))
        for key, clip in clips
    ]


@contextmanager
def open_tar(path: Place) -> Iterator[IO[bytes]]:
    """A tar's bytes, decompressed where it is compressed with gzip."""
    with path.open("rb") as stream:
        compressed = stream.read(2) == b"\x1f\x8b"
        stream.seek(0)
        if compressed:
            with gzip.GzipFile(fileobj=stream) as plain:
                yield cast(IO[bytes], plain)
        else:
            yield stream


def _members(tar: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, str, str]]:
    """Members with their key (the name up to the base name's first dot) and last suffix."""
    for member in tar:
        folder, _, base = member.name.rpartition("/")
        key, _, _ = base.partition(".")
        if not member.isdir():
            yield member, f"{folder}/{key}", PurePosixPath(base).suffix.lower()


def _member_refusal(member: tarfile.TarInfo, tar_bytes: int | None) -> str | None:
    # Nothing is written under a member's name, but it becomes a path in our tables.
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return "path_outside"
    if not member.isreg() or member.issparse() or member.size > MAX_CLIP_BYTES:
        return "tar_member"
    if tar_bytes is not None and member.offset_data + member.size > tar_bytes:
        return "tar_truncated"
    return None


def _label(tar: tarfile.TarFile, member: tarfile.TarInfo, suffix: str) -> str:
    """The class that a json or cls member names, else empty."""
    if suffix not in _LABELS or not member.isreg() or member.size > MAX_SIDECAR_BYTES:
        return ""
    stream = tar.extractfile(member)
    text = stream.read().decode("utf-8-sig", errors="replace") if stream else ""
    if suffix == ".json":
        try:
            tree = json.loads(text)
        except (ValueError, RecursionError):
            return ""
        found = tree.get("class", tree.get("label")) if isinstance(tree, dict) else None
        text = str(found) if isinstance(found, str | int) else ""
    # A slash tells the folders of a pool apart.
    return plain_text(" ".join(text.replace("/", " ").split())[:200])


def plain_text(text: str) -> str:
    """The text without characters that cannot be stored or shown."""
    encoded = text.encode(errors="backslashreplace").decode()
    return "".join(letter if letter.isprintable() else "?" for letter in encoded)
