"""Where clips come from: a listing of files to read, and of files refused unread."""

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dynamics.errors import UserError

VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".webm", ".mkv"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A video file of a source."""

    path: Path
    """Absolute."""
    name: str
    """Path relative to the source's root, with ``/``."""
    clip_class: str
    """Folder that holds the clip, ``""`` directly under the root."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """Everything that a source found, sorted by name."""

    clips: tuple[Clip, ...]
    refused: tuple[tuple[str, str], ...]
    """(name, reason) of what is never opened: ``symlink``, ``not_a_file``, ``file_name``."""


def list_folder(root: Path) -> Listing:
    """Videos in a folder and its subfolders, by suffix; hidden files and folders are skipped.

    Links that lead out of the folder, links to folders (they may form loops), pipes and devices,
    and names that are not UTF-8 are refused.

    Raises:
        UserError: the folder is missing, is no folder, or holds no video.
    """
    if not root.exists():
        raise UserError(f"video folder {root} does not exist; set pool.path to a folder of videos")
    if not root.is_dir():
        raise UserError(f"video folder {root} is a file; set pool.path to the folder that holds it")
    root = root.resolve()
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
            if file_name.startswith(".") or path.suffix.lower() not in VIDEO_SUFFIXES:
                continue
            if reason := _refusal(path, root):
                refused.append((_printable(path, root), reason))
            else:
                clip_class = "" if here == root else here.name
                name = path.relative_to(root).as_posix()
                clips.append(Clip(path=path, name=name, clip_class=clip_class))
    if not clips and not refused:
        kinds = ", ".join(sorted(suffix[1:] for suffix in VIDEO_SUFFIXES))
        raise UserError(f"video folder {root} holds no videos ({kinds}); check pool.path")
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


SOURCES: dict[str, Callable[[Path], Listing]] = {"folder": list_folder}
