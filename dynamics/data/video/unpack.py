"""Clips that lie inside tars, or in a store, as files of this machine."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from dynamics.data.video.sources import Clip, open_tar
from dynamics.storage.files import full_disk_named


@contextmanager
def as_file(clip: Clip) -> Iterator[Path]:
    """The clip's own file, or a temporary copy of what is no file here.

    Raises:
        OSError: it cannot be read.
        UserError: the disk is full, or a store does not answer.
    """
    if isinstance(clip.path, Path) and clip.place is None:
        yield clip.path
        return
    with TemporaryDirectory(prefix="dynamics-clip-") as folder:
        # The member's own name stays a label: as a path it could lead anywhere.
        path = Path(folder) / f"clip{PurePosixPath(clip.name).suffix.lower()}"
        with full_disk_named(path, clip.place[1] if clip.place else 0):
            _copy(clip, path)
        yield path


def _copy(clip: Clip, path: Path) -> None:
    if clip.place is None:
        assert not isinstance(clip.path, Path)
        clip.path.fetch(path)
        return
    start, size = clip.place
    with open_tar(clip.path) as tar, path.open("wb") as file:
        tar.seek(start)
        while size and (piece := tar.read(min(size, 1 << 20))):
            file.write(piece)
            size -= len(piece)
