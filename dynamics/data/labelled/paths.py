"""Paths that a manifest names: only ordinary files below its root are ever opened."""

import os
import stat
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from dynamics.core.errors import UserError, check_machine
from dynamics.core.places import Place, StorePath
from dynamics.core.pointers import HEAD_BYTES, pointer_kind
from dynamics.data.links import Links

MAX_IMAGE_BYTES = 64 * 2**20


class Refused(Exception):  # noqa: N818 - a verdict on the input, not a failure of ours
    """A row that cannot be used; ``str`` is the reason."""


class Root:
    """A folder, and the files below it that a manifest may name."""

    def __init__(self, folder: Place) -> None:
        self.folder = folder.resolve()
        self._prefix = f"{str(self.folder).rstrip(os.sep)}{os.sep}"
        self._given = f"{os.path.abspath(folder)}{os.sep}" if isinstance(folder, Path) else ""
        self._links = Links(self.folder) if isinstance(self.folder, Path) else None
        self._allowed: dict[str, bool] = {}
        self._listed: dict[str, dict[str, list[str]]] = {}

    def find(self, name: object, missing: str = "missing_file") -> Place:
        """The file of a name; ``missing`` is the reason when there is none.

        A name that no file has is also looked for with Windows' separators, in other case, and with
        accents written the other way (NFC, NFD). An absolute path below the root is a name, too.

        Raises:
            Refused: ``no_path`` (not a name), ``path_outside`` (absolute, a URL, or with ``..``),
                ``symlink`` (a link that `Links` does not allow), ``missing``, ``ambiguous_name`` or
                ``not_a_file``.
        """
        if not isinstance(name, str) or not name:
            raise Refused("no_path")
        name = name.removeprefix(self._given).removeprefix(self._prefix)
        if os.path.isabs(name) and self._links is not None and "\0" not in name:
            folder, base = os.path.split(name)  # perhaps by a link to the root
            name = os.path.join(os.path.realpath(folder), base).removeprefix(self._prefix)
        parts = name.replace("\\", "/").split("/")
        if name.startswith(("/", "\\")) or ".." in parts or ":" in parts[0] or "\0" in name:
            raise Refused("path_outside")
        if isinstance(self.folder, StorePath):
            return self.folder / self._object(PurePosixPath(*parts), missing)
        path = f"{self._prefix}{name}"
        if not os.path.lexists(path):
            path = self._alike(parts, missing)
        return self._file(path, missing)

    def name_of(self, path: Place) -> str:
        """The name by which `find` finds a file."""
        return "/".join(path.parts[len(self.folder.parts) :])

    def _file(self, path: str, missing: str) -> Path:
        assert self._links is not None
        try:
            status = os.lstat(path)
            if not self._folder_allowed(os.path.dirname(path)):
                raise Refused("symlink")
            if stat.S_ISLNK(status.st_mode):
                path = os.path.realpath(path)
                if not self._links.allow(path):
                    raise Refused("symlink")
                status = os.lstat(path)
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            check_machine(error)
            raise Refused(missing) from error
        if not stat.S_ISREG(status.st_mode):
            raise Refused("not_a_file")
        return Path(path)

    def _alike(self, parts: Sequence[str], missing: str) -> str:
        """The path of the one file whose name differs only as `alike` forgives."""
        path = self._prefix.rstrip(os.sep)
        for part in parts:
            if part not in ("", "."):
                path = f"{path}{os.sep}{_only(self._entries(path), part, missing)}"
        return path

    def _entries(self, folder: str) -> dict[str, list[str]]:
        """The names in a folder by `alike`; listed once."""
        if folder not in self._listed:
            try:
                names = os.listdir(folder) if self._folder_allowed(folder) else []
            except OSError as error:
                check_machine(error)
                names = []
            self._listed[folder] = by_alike(names)
        return self._listed[folder]

    def _object(self, name: PurePosixPath, missing: str) -> str:
        exact, loose = self._objects
        if name in exact:
            return str(name)
        return _only(loose, str(name), missing)

    @cached_property
    def _objects(self) -> tuple[frozenset[PurePosixPath], dict[str, list[str]]]:
        """Names in a store, asked for all at once: a request for each would take hours."""
        assert isinstance(self.folder, StorePath)
        names = frozenset(place.relative_to(self.folder) for place, _ in self.folder.files())
        return names, by_alike(map(str, names))

    def _folder_allowed(self, folder: str) -> bool:
        """True when a folder's links may be followed; looked up once a folder."""
        assert self._links is not None
        if folder not in self._allowed:
            self._allowed[folder] = self._links.allow(os.path.realpath(folder))
        return self._allowed[folder]


def alike(name: str) -> str:
    """The same text for names that differ in case, the spelling of accents, or blanks at the end.

    File systems and archives of other systems change these.
    """
    return unicodedata.normalize("NFC", name).casefold().strip()


def by_alike(names: Iterable[str]) -> dict[str, list[str]]:
    """Names by what `alike` makes of them."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(alike(name), []).append(name)
    return found


def _only(names: dict[str, list[str]], wanted: str, missing: str) -> str:
    found = names.get(alike(wanted), [])
    if len(found) > 1:
        raise Refused("ambiguous_name")
    if not found:
        raise Refused(missing)
    return found[0]


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A picture in a file."""

    path: Place
    name: str

    def read(self) -> bytes:
        """The encoded bytes.

        Raises:
            Refused: ``missing_file`` (gone, or a link by now), ``not_a_file``, ``file_size``,
                ``git_lfs`` or ``git_annex`` (a pointer in place of the file).
        """
        content = self._content()
        if kind := pointer_kind(content[:HEAD_BYTES]):
            raise Refused(kind)
        return content

    def _content(self) -> bytes:
        if isinstance(self.path, StorePath):
            return _read_object(self.path)
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        except OSError as error:
            check_machine(error)
            raise Refused("missing_file") from error
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise Refused("not_a_file")
            if status.st_size > MAX_IMAGE_BYTES:
                raise Refused("file_size")
            return file.read(MAX_IMAGE_BYTES)


def _read_object(path: StorePath) -> bytes:
    try:
        if path.meta()["size"] > MAX_IMAGE_BYTES:
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
    raise UserError(f"no {what}; looked for {places}; or name the file itself in labelled.path")
