"""Our own interchange format: Parquet tables of pictures with an action sentence.

- ``source_image`` and ``target_image``: encoded bytes, also as Hugging Face's ``{bytes, path}``, or
  a path that counts from the table's folder
- ``action``: the action sentence
- ``clip_path``: optional, the video or picture that both were cut from
- ``clip_class``: optional
"""

import threading
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dynamics.core.errors import UserError, check_machine
from dynamics.core.places import Place, matching
from dynamics.core.pointers import HEAD_BYTES
from dynamics.core.text_files import check_pointer
from dynamics.data.labelled.listing import (
    Collector,
    Labelled,
    LabelledPair,
    Picture,
    Stills,
    plain_action,
    printable,
)
from dynamics.data.labelled.paths import MAX_IMAGE_BYTES, ImageFile, Refused, Root

IMAGES = ("source_image", "target_image")
_TEXTS = ("action", "clip_path", "clip_class")
ORIGIN = (
    "the columns are source_image, target_image and action, see dynamics/data/labelled/table.py"
)


def list_parquet(path: Place) -> Labelled:
    """One pair a row; embedded pictures are read when they are used.

    Args:
        path: a Parquet file, or a folder whose ``*.parquet`` are read in the order of their names.

    Raises:
        UserError: no table, a damaged one, a missing column, or no row can be used.
    """
    collector = Collector(f"parquet in {path}", ORIGIN)
    files = [path] if path.is_file() else matching(path, "*.parquet")
    if not files:
        raise UserError(f"{path} holds no *.parquet; {ORIGIN}")
    for file in files:
        table = PictureTable(file)
        table.check((*IMAGES, "action"))
        root = Root(file.absolute().parent)
        for row, values in table.rows():
            name = f"{file.name} row {row}"
            try:
                collector.add(_pair(table, root, row, name, values))
            except Refused as error:
                collector.reject(name, str(error))
    return collector.done()


def _pair(
    table: "PictureTable", root: Root, row: int, name: str, values: dict[str, Any]
) -> LabelledPair:
    pictures: list[Picture] = []
    for column in IMAGES:
        if column in table.embedded:
            pictures.append(TablePicture(table, row, column, f"{name} {column}"))
        else:
            path = values.get(column)
            pictures.append(ImageFile(root.find(path), str(path)))
    clip = values.get("clip_path")
    clip_class = values.get("clip_class")
    return LabelledPair(
        name=printable(clip or name),
        frames=Stills(*pictures),
        action=plain_action(values.get("action")),
        clip_class=printable(clip_class) if clip_class else "",
        sources=(printable(clip),) if clip else tuple(picture.name for picture in pictures),
    )


def open_parquet(path: Place, otherwise: str = "is damaged; get it again") -> pq.ParquetFile:
    """A Parquet file of other people.

    Raises:
        UserError: it is a pointer, or, with the words of ``otherwise``, no such file.
    """
    try:
        stream = path.open("rb")
        check_pointer(path, stream.read(HEAD_BYTES))
        return pq.ParquetFile(stream)
    except (pa.ArrowInvalid, OSError) as error:
        check_machine(error)
        raise UserError(f"{path} {otherwise}") from error


class PictureTable:
    """A Parquet file with pictures; one row group's are in memory at a time.

    Args:
        path: the file.
        columns: columns of pictures; those that it has not are left out.

    Raises:
        UserError: it is no Parquet file.
    """

    def __init__(self, path: Place, columns: tuple[str, ...] = IMAGES) -> None:
        self._file = open_parquet(path, f"is no Parquet file; {ORIGIN}")
        schema = self._file.schema_arrow
        self.embedded = frozenset(
            name
            for name in columns
            if name in schema.names and not _is_text(schema.field(name).type)
        )
        """Image columns that hold bytes."""
        self.path, self._columns = path, columns
        self._lock = threading.Lock()
        self._group: tuple[int, pa.Table] | None = None
        sizes = [
            self._file.metadata.row_group(group).num_rows
            for group in range(self._file.num_row_groups)
        ]
        self._starts = [sum(sizes[:group]) for group in range(len(sizes) + 1)]

    def __reduce__(self) -> Any:
        return _open, (self.path, self._columns)

    def check(self, columns: Iterable[str]) -> None:
        """Refuse a table that lacks columns.

        Raises:
            UserError: with their names.
        """
        missing = [name for name in columns if name not in self._file.schema_arrow.names]
        if missing:
            raise UserError(f"{self.path} has no column {', '.join(missing)}; {ORIGIN}")

    def rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Row numbers with texts and paths, without pictures."""
        small = {*_TEXTS, *IMAGES} - self.embedded
        columns = [name for name in self._file.schema_arrow.names if name in small]
        start = 0
        try:
            for batch in self._file.iter_batches(batch_size=4096, columns=columns):
                for offset, row in enumerate(batch.to_pylist()):
                    yield start + offset, row
                start += batch.num_rows
        except (pa.ArrowInvalid, OSError) as error:
            check_machine(error)
            raise UserError(f"{self.path} is damaged; get it again") from error

    def image(self, row: int, column: str) -> bytes:
        """The bytes of a picture; threads take turns."""
        if column not in self.embedded:
            raise Refused("missing_image")
        with self._lock:
            group = next(g for g, end in enumerate(self._starts[1:]) if row < end)
            if self._group is None or self._group[0] != group:
                self._group = (group, self._file.read_row_group(group, columns=list(self.embedded)))
            value = self._group[1][column][row - self._starts[group]].as_py()
        payload = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(payload, bytes) or not payload:
            raise Refused("missing_image")
        if len(payload) > MAX_IMAGE_BYTES:
            raise Refused("file_size")
        return payload


@lru_cache(4)
def _open(path: Place, columns: tuple[str, ...]) -> PictureTable:
    """A table that other processes read pictures of."""
    return PictureTable(path, columns)


class TablePicture:
    """A picture in a table."""

    __slots__ = ("_column", "_row", "_table", "name")

    def __init__(self, table: PictureTable, row: int, column: str, name: str) -> None:
        self._table = table
        self._row = row
        self._column = column
        self.name = name

    @property
    def path(self) -> Place:
        """The table."""
        return self._table.path

    def read(self) -> bytes:
        """The encoded bytes.

        Raises:
            Refused: ``missing_image``, ``file_size`` or ``unreadable``.
        """
        try:
            return self._table.image(self._row, self._column)
        except (pa.ArrowInvalid, OSError) as error:
            check_machine(error)
            raise Refused("unreadable") from error


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
