"""Paths that a manifest names: only ordinary files below its root are ever opened."""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from dynamics.core.errors import UserError
from dynamics.core.places import Place, StorePath

MAX_IMAGE_BYTES = 64 * 2**20


class Refused(Exception):  # noqa: N818 - a verdict on the input, not a failure of ours
    """A row that cannot be used; ``str`` is the reason."""


class Root:
    """A folder, and the files below it that a manifest may name."""

    def __init__(self, folder: Place) -> None:
        self.folder = folder.resolve()
        self._prefix = f"{str(self.folder).rstrip(os.sep)}{os.sep}"
        self._inside: dict[str, bool] = {}

    def find(self, name: object, missing: str = "missing_file") -> Place:
        """The file of a relative name; ``missing`` is the reason when there is none.

        Raises:
            Refused: ``no_path`` (not a name), ``path_outside`` (absolute, a URL, or with ``..``),
                ``symlink`` (a link leads out of the root), ``missing`` or ``not_a_file``.
        """
        if not isinstance(name, str) or not name:
            raise Refused("no_path")
        parts = name.split("/")
        if name.startswith("/") or ".." in parts or "\\" in name or ":" in parts[0] or "\0" in name:
            raise Refused("path_outside")
        if isinstance(self.folder, StorePath):
            if PurePosixPath(name) not in self._objects:
                raise Refused(missing)
            return self.folder / name
        path = f"{self._prefix}{name}"
        try:
            status = os.lstat(path)
            if not self._stays_inside(os.path.dirname(path)):
                raise Refused("symlink")
            if stat.S_ISLNK(status.st_mode):
                path = os.path.realpath(path)
                if not path.startswith(self._prefix):
                    raise Refused("symlink")
                status = os.lstat(path)
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            raise Refused(missing) from error
        if not stat.S_ISREG(status.st_mode):
            raise Refused("not_a_file")
        return Path(path)

    def name_of(self, path: Place) -> str:
        """The name by which `find` finds a file."""
        return "/".join(path.parts[len(self.folder.parts) :])

    @cached_property
    def _objects(self) -> frozenset[PurePosixPath]:
        """Names in a store, asked for all at once: a request for each would take hours."""
        assert isinstance(self.folder, StorePath)
        return frozenset(place.relative_to(self.folder) for place, _ in self.folder.files())

    def _stays_inside(self, folder: str) -> bool:
        """True when a folder's links end below the root; looked up once a folder."""
        if folder not in self._inside:
            self._inside[folder] = f"{os.path.realpath(folder)}{os.sep}".startswith(self._prefix)
        return self._inside[folder]


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A picture in a file."""

    path: Place
    name: str

    def read(self) -> bytes:
        """The encoded bytes.

        Raises:
            Refused: ``missing_file`` (gone, or a link by now), ``not_a_file`` or ``file_size``.
        """
        if isinstance(self.path, StorePath):
            return _read_object(self.path)
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        except OSError as error:
            raise Refused("missing_file") from error
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise Refused("not_a_file")
            if not 0 < status.st_size <= MAX_IMAGE_BYTES:
                raise Refused("file_size")
            return file.read(MAX_IMAGE_BYTES)


def _read_object(path: StorePath) -> bytes:
    try:
        if not 0 < path.meta()["size"] <= MAX_IMAGE_BYTES:
            raise Refused("file_size")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise Refused("missing_file") from error


def first_file(candidates: Sequence[Place], what: str) -> Place:
    """The first of several usual places that holds a file.

    Raises:
        UserError: none does; ``what`` names the thing and where to get it.
    """
    for path in candidates:
        if path.is_file():
            return path
    places = ", ".join(str(path) for path in candidates[:3])
    raise UserError(f"no {what}; looked for {places}")
