"""Clips that lie inside tars as files, a few at a time."""

import shutil
from pathlib import Path, PurePosixPath
from typing import Self

from dynamics.core.records import stable_hash
from dynamics.data.video.sources import Clip
from dynamics.storage.files import full_disk_named


class Unpacked:
    """A folder for clips of tars, from the moment they are asked for until they are dropped."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def path(self, clip: Clip) -> Path:
        """The clip as a file, unpacked now if it lies in a tar."""
        if clip.place is None:
            return clip.path
        path, (start, size) = self._file(clip), clip.place
        with full_disk_named(path, size):
            self._folder.mkdir(parents=True, exist_ok=True)
            with clip.path.open("rb") as tar, path.open("wb") as file:
                tar.seek(start)
                while size and (piece := tar.read(min(size, 1 << 20))):
                    file.write(piece)
                    size -= len(piece)
        return path

    def drop(self, clip: Clip) -> None:
        """Delete what `path` unpacked."""
        if clip.place is not None:
            self._file(clip).unlink()

    def _file(self, clip: Clip) -> Path:
        # The member's own name stays a label: as a path it could lead anywhere.
        return self._folder / f"{stable_hash(clip.name)}{PurePosixPath(clip.name).suffix.lower()}"
