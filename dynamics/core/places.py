"""Places of a run: a path of this machine, or an object of a store (S3, Google Cloud, Azure).

`StorePath` has the methods of `pathlib.Path` that the code uses, so most code takes either. A
folder of a store exists while an object lies below it. Credentials and endpoints come from the
environment under the names of each provider's own tools, e.g. ``AWS_ACCESS_KEY_ID``.
"""

import errno
import io
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from fnmatch import fnmatchcase
from functools import cache, total_ordering
from pathlib import Path, PurePath, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import PlainSerializer, PlainValidator

from dynamics.core.errors import UserError

if TYPE_CHECKING:
    from obstore import GetOptions, GetResult, ObjectMeta
    from obstore.store import ObjectStore

_Result = TypeVar("_Result")

SCHEMES = ("s3", "gs", "az")
"""Stores by the scheme of their URLs."""

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")
_PATIENT_S = 180
_FIRST_S = 5
"""Seconds for which a bucket that never answered this process is asked: it may not exist at all."""
_BUFFER_BYTES = 1 << 20
_WRITER = "writer"  # the attribute by which a writer knows an object that it created


@total_ordering
class StorePath:
    """An object, or a folder, of a store: ``s3://bucket/a/b``. An immutable value.

    It has no ``__fspath__``: what opens files of this machine cannot mistake it for one. Every
    method that reads or writes raises `UserError` when the store does not answer or refuses, and
    FileNotFoundError when the object is not there. Not for processes that were forked after a first
    use: the threads of the client are not there.

    Raises:
        UserError: another scheme, no bucket, credentials or a query in the URL.
    """

    __slots__ = ("_bucket", "_key")

    def __init__(self, url: str) -> None:
        scheme, _, rest = url.partition("://")
        bucket, _, key = rest.partition("/")
        # The URL is not repeated where it may hold a secret.
        if "@" in bucket or re.search(r"[?#]", url):
            raise UserError(
                f"a {scheme}:// place must be scheme://bucket/folder and nothing else; give "
                "credentials in the environment, never in the URL"
            )
        if scheme not in SCHEMES or not bucket:
            known = ", ".join(f"{name}://bucket/folder" for name in SCHEMES)
            raise UserError(f"{url} is no place that can be used; give a path, or {known}")
        parts = [part for part in key.split("/") if part]
        if "." in parts or ".." in parts:
            raise UserError(f"{url} must not have . or .. in it")
        self._bucket = f"{scheme}://{bucket}"
        self._key = PurePosixPath(*parts)

    def __reduce__(self) -> tuple[type["StorePath"], tuple[str]]:
        return StorePath, (str(self),)

    def __str__(self) -> str:
        return self._bucket if self._is_bucket else f"{self._bucket}/{self._key}"

    def __repr__(self) -> str:
        return f"StorePath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StorePath) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __lt__(self, other: "StorePath") -> bool:
        return self.parts < other.parts

    def __truediv__(self, name: str | PurePath) -> "StorePath":
        return self._at(self._key / name)

    def _at(self, key: str | PurePath) -> "StorePath":
        found = object.__new__(StorePath)
        found._bucket, found._key = self._bucket, PurePosixPath(key)
        if found._key.is_absolute() or ".." in found._key.parts:
            raise UserError(f"{key} leads out of {self}")
        return found

    @property
    def _is_bucket(self) -> bool:
        return not self._key.parts

    @property
    def name(self) -> str:
        """Last part; the bucket's name for a whole bucket."""
        return self._key.name or self._bucket.partition("://")[2]

    @property
    def stem(self) -> str:
        """`name` without its suffix."""
        return self._key.stem

    @property
    def suffix(self) -> str:
        """Suffix of the name, with its dot."""
        return self._key.suffix

    @property
    def parent(self) -> "StorePath":
        """The folder; a bucket's own is the bucket."""
        return self._at(self._key.parent)

    @property
    def parts(self) -> tuple[str, ...]:
        """The bucket's URL, then the names of folders and object."""
        return (self._bucket, *self._key.parts)

    def with_name(self, name: str) -> "StorePath":
        """Another object of the same folder."""
        return self._at(self._key.with_name(name))

    def relative_to(self, folder: "Place") -> PurePosixPath:
        """The part below ``folder``; ValueError where that is not above."""
        if not self.is_relative_to(folder):
            raise ValueError(f"{self} is not below {folder}")
        return PurePosixPath(*self.parts[len(folder.parts) :])

    def is_relative_to(self, folder: "Place") -> bool:
        """True when ``folder`` is this place or lies above it."""
        above = folder.parts
        return isinstance(folder, StorePath) and self.parts[: len(above)] == above

    def is_absolute(self) -> Literal[True]:
        """True: the URL of an object depends on no working folder."""
        return True

    def as_posix(self) -> str:
        """The URL."""
        return str(self)

    as_uri = as_posix

    def absolute(self) -> "StorePath":
        """This place, as `expanduser` and `resolve` too: a URL depends on nothing of a machine."""
        return self

    expanduser = resolve = absolute

    def exists(self) -> bool:
        """True for an object and for a folder."""
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        """True for an object."""
        try:
            self.meta()
        except FileNotFoundError:
            return False
        return True

    def is_dir(self) -> bool:
        """True when an object lies below."""
        return next(self.files(), None) is not None

    def read_bytes(self) -> bytes:
        """The object's bytes."""
        return self._get()[0]

    def read_text(self) -> str:
        """The object's bytes as UTF-8 text."""
        return self.read_bytes().decode()

    def read_range(self, start: int, stop: int) -> bytes:
        """The bytes ``start`` to ``stop`` (exclusive, within the object)."""
        import obstore

        return bytes(
            self._asked(lambda store: obstore.get_range(store, self._name, start=start, end=stop))
        )

    def fetch(self, path: Path, version: str | None = None) -> None:
        """Copy the object, if given only in the version of an ``e_tag``, to a file, in pieces."""
        import obstore

        def copied(store: "ObjectStore") -> None:
            with path.open("wb") as stream:
                wanted: GetOptions = {"if_match": version} if version else {}
                found = obstore.get(store, self._name, options=wanted)
                stream.writelines(found.stream())

        self._asked(copied)

    def open(self, mode: Literal["rb"] = "rb") -> io.BufferedReader:
        """A reader of the object by ranges of a megabyte, for what reads parts of large files."""
        return io.BufferedReader(_Ranges(self, self.meta()["size"]), _BUFFER_BYTES)

    def meta(self) -> "ObjectMeta":
        """Size and ``e_tag`` of the object; an e_tag is another one when the bytes are."""
        import obstore

        if self._is_bucket:
            raise FileNotFoundError(errno.ENOENT, "a bucket is no object", str(self))
        return self._asked(lambda store: obstore.head(store, self._name))

    def files(self) -> Iterator[tuple["StorePath", "ObjectMeta"]]:
        """Every object below this folder, read from the store as they are asked for."""
        import obstore

        prefix = None if self._is_bucket else self._name
        after: str | None = None
        pages: Iterator[Sequence[ObjectMeta]] | None = None

        def page(store: "ObjectStore") -> "Sequence[ObjectMeta]":
            nonlocal pages
            # After an error, which a listing does not survive, a new one goes on where it was.
            opened = pages or iter(obstore.list(store, prefix, offset=after, chunk_size=1000))
            pages = None
            found = next(opened, ())
            pages = opened
            return found

        while found := self._asked(page):
            for meta in found:
                yield self._at(meta["path"]), meta
            after = found[-1]["path"]

    def iterdir(self) -> Iterator["StorePath"]:
        """Objects and folders right below, by name; all names are in memory at once."""
        import obstore

        prefix = None if self._is_bucket else self._name
        found = self._asked(lambda store: obstore.list_with_delimiter(store, prefix))
        objects = [meta["path"] for meta in found["objects"]]
        yield from map(self._at, sorted({*objects, *found["common_prefixes"]}))

    def glob(self, pattern: str) -> Iterator["StorePath"]:
        """What lies below under names of the shell patterns, one for each level, by name."""
        name, _, rest = pattern.partition("/")
        for place in self.iterdir():
            if fnmatchcase(place.name, name):
                yield from place.glob(rest) if rest else (place,)

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete the object; an absent one only counts where ``missing_ok`` is False."""
        if not missing_ok:
            self.meta()
        self.delete([self])

    def delete(self, objects: list["StorePath"]) -> None:
        """Delete objects of this bucket, absent ones included."""
        import obstore

        names = [place._name for place in objects]
        if names:
            with suppress(FileNotFoundError):  # Google's answer for what is absent
                self._asked(lambda store: obstore.delete(store, names))

    def write(self, payload: bytes | Path) -> None:
        """Write or replace the object; ``payload`` is its bytes, or a file that holds them."""
        import obstore

        self._asked(lambda store: obstore.put(store, self._name, payload))

    def create(self, payload: bytes) -> bool:
        """Create the object unless it exists; of many writers exactly one gets True.

        A reply that got lost does not make the writer lose to itself: every call leaves a number of
        its own with the object, and finds it there.
        """
        import obstore

        mine = secrets.token_hex(8)
        try:
            self._asked(
                lambda store: obstore.put(
                    store, self._name, payload, mode="create", attributes={_WRITER: mine}
                )
            )
        except FileExistsError:
            return self._get()[1].attributes.get(_WRITER) == mine
        return True

    def _get(self) -> tuple[bytes, "GetResult"]:
        import obstore

        def whole(store: "ObjectStore") -> tuple[bytes, "GetResult"]:
            found = obstore.get(store, self._name)
            return bytes(found.bytes()), found

        return self._asked(whole)

    @property
    def _name(self) -> str:
        return "" if self._is_bucket else str(self._key)

    def _asked(self, request: Callable[["ObjectStore"], _Result]) -> _Result:
        """The answer to a request, repeated while that may help.

        The client repeats what a store says it could not do. What it does not repeat is a request
        whose connection broke when nobody knows whether it was carried out; each of ours may be.
        """
        from obstore.exceptions import AlreadyExistsError, BaseError, GenericError

        seconds = _PATIENT_S if self._bucket in _answered else _FIRST_S
        end = time.monotonic() + seconds
        while True:
            try:
                result = request(_store(self._bucket, seconds))
                _answered.add(self._bucket)
                return result
            except FileNotFoundError as error:
                if "NoSuchBucket" in str(error) or "ContainerNotFound" in str(error):
                    raise self._refused(error) from None
                raise FileNotFoundError(errno.ENOENT, "no such object", str(self)) from None
            except AlreadyExistsError:
                raise FileExistsError(errno.EEXIST, "the object exists", str(self)) from None
            except GenericError as error:
                broken = "HTTP error" in str(error) and "builder error" not in str(error)
                if not broken or time.monotonic() > end:
                    raise self._refused(error) from None
                time.sleep(0.1)
            except BaseError as error:
                raise self._refused(error) from None

    def _refused(self, error: Exception) -> UserError:
        """One line for what a store answered; without the queries of its URLs, which may sign."""
        text = re.sub(r"\?\S+", "", str(error).split("\n\nDebug source", maxsplit=1)[0])
        if "NoSuchBucket" in text or "ContainerNotFound" in text:
            return UserError(
                f"{self}: {self._bucket} does not exist; create it, or correct the name"
            )
        kind = type(error).__name__
        if kind in ("PermissionDeniedError", "UnauthenticatedError"):
            return UserError(
                f"{self}: the store refuses these credentials; check the environment's (for S3 "
                "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL) and what "
                f"they may do in {self._bucket}"
            )
        return UserError(
            f"{self} cannot be used ({' '.join(text.split())[:300]}); check credentials and "
            "endpoint in the environment, and run the same command again"
        )


class _Ranges(io.RawIOBase):
    """An object read by ranges."""

    def __init__(self, place: StorePath, size: int) -> None:
        self._place, self._size, self._position = place, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        stop = min(self._size, self._position + len(buffer))
        if stop <= self._position:
            return 0
        found = self._place.read_range(self._position, stop)
        buffer[: len(found)] = found
        self._position += len(found)
        return len(found)


_answered: set[str] = set()


@cache
def _store(bucket: str, seconds: int) -> "ObjectStore":
    """The client of a bucket, which repeats failed requests for so long; kept for later ones."""
    from obstore.store import from_url

    return from_url(
        bucket,
        retry_config={
            "max_retries": 10,
            "retry_timeout": timedelta(seconds=seconds),
            "backoff": {"max_backoff": timedelta(seconds=seconds / 12)},
        },
    )


Place = Path | StorePath
"""Where a run or a part of it lies."""


def matching(folder: Place, pattern: str) -> list[Place]:
    """What `glob` finds, in the order of the names."""
    found: Iterator[Place] = folder.glob(pattern)
    return sorted(found, key=lambda place: place.parts)


def as_place(value: str | Place) -> Place:
    """The place that a person named: a path, or a URL of a store.

    Raises:
        UserError: an address that is neither, or one with credentials in it.
    """
    if isinstance(value, StorePath):
        return value
    return StorePath(str(value)) if _ADDRESS.match(str(value)) else Path(value)


def on_this_machine(value: Any) -> Any:
    """Return a path; refuse an address, which a path would turn into a local folder.

    Raises:
        ValueError: it starts like ``s3://lab/runs`` or ``file:/runs``, or has a zero byte.
    """
    if "\0" in str(value):
        raise ValueError(f"{value!r} has a zero byte; no path can")
    if _ADDRESS.match(str(value)):
        raise ValueError(f"{value} is not a path of this machine; mount it and name the folder")
    return value


def _checked(value: Any) -> Place:
    try:
        found = as_place(value)
        return found if isinstance(found, StorePath) else Path(on_this_machine(found)).expanduser()
    except (UserError, TypeError, RuntimeError) as error:  # RuntimeError: ~ of nobody
        raise ValueError(str(error)) from error


ConfigPlace = Annotated[Place, PlainValidator(_checked), PlainSerializer(str)]
"""The type of a place in the config."""
