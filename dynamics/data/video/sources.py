"""Sources of clips: listings of files to read, and of files refused unread.

A source is a function from a folder to a `Listing`. They differ in what a clip's class is, which
the class-stratified filter (`StratifiedTopKRule`, the paper's Algorithm 1) takes turns by.
"""

import json
import os
import re
import stat
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from dynamics.core.config import PoolPart
from dynamics.core.errors import UserError
from dynamics.storage.files import local_copy

VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".webm", ".mkv"})
MAX_SIDECAR_BYTES = 1 << 20
"""Largest json or cls member of a tar that is read for a class."""
MAX_CLIP_BYTES = 4 << 30

_UCF101 = re.compile(r"v_(?P<clip_class>[A-Za-z0-9]+)_g\d+_c\d+")
_SPLITS = frozenset(
    {"train", "training", "val", "validate", "validation", "test", "testing", "videos"}
)
"""Folders of the public data sets that hold class folders, or clips without a class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A video file of a source."""

    path: Path
    """Absolute; the file itself, or the tar that holds it."""
    name: str
    """Path relative to the source's root, with ``/``."""
    clip_class: str
    """Class of the clip in its source, ``""`` when it has none."""
    place: tuple[int, int] | None = None
    """First byte and size of a clip inside a tar."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """Everything that a source found, sorted by name."""

    clips: tuple[Clip, ...]
    refused: tuple[tuple[str, str], ...]
    """(name, reason) of files that are never opened: ``symlink``, ``not_a_file``, ``file_name``; in
    tars also ``tar_unreadable``, ``tar_truncated``, ``tar_member``, ``path_outside``."""


def list_folder(root: Path) -> Listing:
    """Videos in a folder and its subfolders; the class is the folder that holds the clip.

    Files are told by their suffix; hidden files and folders are skipped. Links that lead out of the
    folder, links to folders (they may form loops), pipes and devices, and names that are not UTF-8
    are refused.

    Raises:
        UserError: the folder is missing, is no folder, or holds no video.
    """
    listing = find_files(checked_root(root), VIDEO_SUFFIXES)
    if not listing.clips and not listing.refused:
        kinds = ", ".join(sorted(suffix[1:] for suffix in VIDEO_SUFFIXES))
        raise UserError(f"video folder {root} holds no videos ({kinds}); check pool.path")
    return listing


def list_ucf101(root: Path) -> Listing:
    """UCF-101 as distributed: ``Class/v_Class_g01_c01.avi``; the class is in the file's name.

    Other videos are refused as ``clip_name``.

    Raises:
        UserError: as `list_folder`, or no file is named so.
    """
    listing = list_folder(root)
    named = [(clip, _UCF101.fullmatch(PurePosixPath(clip.name).stem)) for clip in listing.clips]
    clips = [replace(clip, clip_class=match["clip_class"]) for clip, match in named if match]
    if not clips:
        raise UserError(
            f"video folder {root} holds no UCF-101 clips (v_Class_g01_c01.avi); unpack UCF101.rar "
            "of https://www.crcv.ucf.edu/data/UCF101.php there, or set pool.source=folder"
        )
    others = [(clip.name, "clip_name") for clip, match in named if not match]
    return Listing(clips=tuple(clips), refused=tuple(sorted([*listing.refused, *others])))


def list_kinetics700(root: Path) -> Listing:
    """Kinetics: ``train/playing guitar/ID_000010_000020.mp4``; the class is the folder's name.

    Some copies write ``_`` for the blanks of class names; the clips of the test split have no
    class.

    Raises:
        UserError: as `list_folder`.
    """
    return _classes(list_folder(root), "_")


def list_moments(root: Path) -> Listing:
    """Moments in Time: ``training/adult+male+singing/CLIP.mp4``; the class is the folder's name.

    Raises:
        UserError: as `list_folder`.
    """
    return _classes(list_folder(root), "+")


def list_webdataset(root: Path) -> Listing:
    """Tar shards whose members share a key: ``000123.mp4``, ``000123.json``, ``000123.cls``.

    A clip's class is ``class`` or ``label`` of its json, else the text of its cls, else the folder
    in its key. Only the headers and these small members are read here. Links, devices and whatever
    else is no plain member are refused, and names that lead out of the tar.

    Raises:
        UserError: the folder is missing, is no folder, or holds no tar with a video in it.
    """
    shards = find_files(checked_root(root), frozenset({".tar"}))
    clips: list[Clip] = []
    refused = list(shards.refused)
    for shard in shards.clips:
        found, problems = _in_tar(shard)
        clips += found
        refused += problems
    if not clips and not refused:
        raise UserError(f"video folder {root} holds no tar with videos in it; check pool.path")
    return Listing(
        clips=tuple(sorted(clips, key=lambda clip: clip.name)), refused=tuple(sorted(refused))
    )


SOURCES: dict[str, Callable[[Path], Listing]] = {
    "folder": list_folder,
    "ucf101": list_ucf101,
    "kinetics700": list_kinetics700,
    "moments": list_moments,
    "webdataset": list_webdataset,
}


def clips_by_path(parts: Sequence[PoolPart]) -> dict[str, Clip]:
    """Clips of a pool by ``clip_path``, which begins with the folder's name if there are several.

    Raises:
        UserError: a folder is missing or holds no video.
    """
    return {
        f"{part.name}/{clip.name}" if len(parts) > 1 else clip.name: clip
        for part in parts
        for clip in SOURCES[part.source](local_copy(part.path)).clips
    }


def checked_root(root: Path) -> Path:
    """The folder without links.

    Raises:
        UserError: it is missing or no folder.
    """
    if not root.exists():
        raise UserError(f"video folder {root} does not exist; set pool.path to a folder of videos")
    if not root.is_dir():
        raise UserError(f"video folder {root} is a file; set pool.path to the folder that holds it")
    return root.resolve()


def find_files(root: Path, suffixes: Iterable[str]) -> Listing:
    """Files by suffix, in any case, under a folder without links; rules as `list_folder`."""
    wanted = frozenset(suffixes)
    clips: list[Clip] = []
    refused: list[tuple[str, str]] = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        here = Path(folder)
        refused += [
            (_printable(here / name, root), "symlink")
            for name in subfolders
            if (here / name).is_symlink()
        ]
        for file_name in files:
            path = here / file_name
            if file_name.startswith(".") or path.suffix.lower() not in wanted:
                continue
            if reason := _refusal(path, root):
                refused.append((_printable(path, root), reason))
            else:
                clip_class = "" if here == root else here.name
                name = path.relative_to(root).as_posix()
                clips.append(Clip(path=path, name=name, clip_class=clip_class))
    return Listing(
        clips=tuple(sorted(clips, key=lambda clip: clip.name)), refused=tuple(sorted(refused))
    )


def _refusal(path: Path, root: Path) -> str | None:
    try:
        path.relative_to(root).as_posix().encode()
    except UnicodeEncodeError:
        return "file_name"
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):  # dangling, or a loop of links
        return "symlink"
    if not target.is_relative_to(root):
        return "symlink"
    # A pipe named clip.mp4 would block its reader for ever.
    return None if stat.S_ISREG(target.stat().st_mode) else "not_a_file"


def _printable(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix().encode(errors="backslashreplace").decode()


def _classes(listing: Listing, blank: str) -> Listing:
    """Class folders, with ``blank`` read as a blank; a split's own folder is no class."""
    clips = [
        replace(
            clip,
            clip_class=""
            if clip.clip_class.lower() in _SPLITS
            else clip.clip_class.replace(blank, " "),
        )
        for clip in listing.clips
    ]
    return replace(listing, clips=tuple(clips))


def _in_tar(shard: Clip) -> tuple[list[Clip], list[tuple[str, str]]]:
    """Clips of a shard, and what was refused; names begin with the shard's."""
    found: list[tuple[str, Clip]] = []
    classes: dict[str, str] = {}
    refused: list[tuple[str, str]] = []
    size = shard.path.stat().st_size
    try:
        # "r:" opens plain tars only: places in a compressed one are no places in the file.
        with tarfile.open(shard.path, "r:") as tar:
            for member, key, suffix in _members(tar):
                name = f"{shard.name}/{member.name}"
                if suffix in VIDEO_SUFFIXES:
                    if reason := _member_refusal(member, size):
                        refused.append((plain_text(name), reason))
                        continue
                    place = (member.offset_data, member.size)
                    clip = Clip(path=shard.path, name=plain_text(name), clip_class="", place=place)
                    found.append((key, clip))
                elif label := _label(tar, member, suffix):
                    classes[key] = label
    except (tarfile.TarError, OSError, ValueError):
        refused.append((shard.name, "tar_unreadable"))
    clips = [
        replace(clip, clip_class=classes.get(key, PurePosixPath(key).parent.name))
        for key, clip in found
    ]
    return clips, refused


def _members(tar: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, str, str]]:
    """Members with their key (the name up to the base name's first dot) and last suffix."""
    for member in tar:
        folder, _, base = member.name.rpartition("/")
        key, dot, _ = base.partition(".")
        if dot and key and not member.isdir():
            yield member, f"{folder}/{key}", PurePosixPath(base).suffix.lower()


def _member_refusal(member: tarfile.TarInfo, tar_bytes: int) -> str | None:
    # Nothing is written under a member's name, but it becomes a path in our tables.
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return "path_outside"
    if not member.isreg() or member.issparse() or member.size > MAX_CLIP_BYTES:
        return "tar_member"
    return "tar_truncated" if member.offset_data + member.size > tar_bytes else None


def _label(tar: tarfile.TarFile, member: tarfile.TarInfo, suffix: str) -> str:
    """The class that a json or cls member names, else empty."""
    if suffix not in (".json", ".cls") or not member.isreg() or member.size > MAX_SIDECAR_BYTES:
        return ""
    stream = tar.extractfile(member)
    text = stream.read().decode(errors="replace") if stream else ""
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
