"""Tables of pairs in parts: small columns in Parquet, codes in files that a run's tables share.

    data/codes/<sha256>.safetensors        see `dynamics.storage.codes`
    data/pool.parts/rows/<sha256>.parquet  rows in stored form, at most 65,536 a part
    data/pool.parts/manifest.json          the last write: it exists = the table is whole

The stored form of a row has, for its codes, the file and the rows in it: ``codes``, ``source_row``
and ``target_row`` of the frames, ``pair_row`` of the recognition weights (float16, as exact as
weights need to be). ``content`` is a hash of all that the row says of its pair. A table's digest is
made of its rows alone, so that it does not depend on how they were cut into files.

F frames, P pairs, L codes a frame.
"""

import hashlib
import posixpath
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dynamics.core.errors import UserError
from dynamics.core.places import Place
from dynamics.core.records import PAIR_SCHEMA, DatasetRef
from dynamics.storage.codes import CodesFolder, Kind, codes_path, write_codes
from dynamics.storage.files import create_bytes
from dynamics.storage.parquet import damaged, from_parquet, iter_parquet, missing, to_parquet
from dynamics.storage.sealed import ContentFile, Sealed

PART_ROWS = 65_536
"""Rows of a part."""
PARTS = ".parts"
"""Suffix of the folder of a table in parts."""

_LISTS: dict[str, tuple[Kind, str]] = {
    "source_codes": ("frames", "source_row"),
    "target_codes": ("frames", "target_row"),
    "recognition": ("recognition", "pair_row"),
}
"""Columns of the full form: the array of the codes file, and the stored column that has its row."""
_PLACES = [
    pa.field("codes", pa.string(), nullable=False),
    pa.field("source_row", pa.int32(), nullable=False),
    pa.field("target_row", pa.int32(), nullable=False),
    pa.field("pair_row", pa.int32(), nullable=False),
    pa.field("content", pa.binary(16), nullable=False),
]
_ROWS_WITH_CODES = 4096
"""Rows that are held at a time with their codes: 32 MB at 1,024 codes a frame."""
_LARGEST = np.finfo(np.float16).max


class TableManifest(Sealed):
    """What a table in parts consists of."""

    version: Literal[1] = 1
    num_rows: int
    rows_digest: str
    """Of the rows, however they are cut."""
    parts: tuple[ContentFile, ...]
    """In the order of the rows."""
    codes: str
    """The folder of the codes files, relative to the table's."""


def stored_schema(schema: pa.Schema) -> pa.Schema:
    """The stored form of PAIR_SCHEMA or TRANSITION_SCHEMA."""
    return pa.schema([field for field in schema if field.name not in _LISTS] + _PLACES)


def store_codes(
    codes: Place,
    rows: pa.Table,
    frames_FL: npt.NDArray[np.uint16],
    source_rows: npt.NDArray[np.integer],
    target_rows: npt.NDArray[np.integer],
    recognition_PL: npt.NDArray[np.floating],
) -> pa.Table:
    """Write the codes of some pairs as one file, durably; returns the pairs in stored form.

    Args:
        codes: folder of the codes files.
        rows: the other columns of the P pairs.
        frames_FL: codes of their frames, each frame once.
        source_rows: row of every pair's source in the frames.
        target_rows: row of every pair's target.
        recognition_PL: stored as float16; what is larger than its largest number becomes that.
    """
    recognition = np.minimum(recognition_PL, _LARGEST).astype(np.float16)
    digest = write_codes(codes, frames_FL, recognition)
    content = _content(rows, frames_FL, source_rows, target_rows, recognition)
    values = [pa.array([digest]).take(pa.array(np.zeros(rows.num_rows, np.int32)))]
    for place in (source_rows, target_rows, np.arange(rows.num_rows)):
        values.append(pa.array(np.asarray(place, np.int32)))
    for field, value in zip(_PLACES, [*values, content], strict=True):
        rows = rows.append_column(field, value)
    return rows


class TableWriter:
    """Writes a table in parts: any number of `append`, then `finish`.

    Args:
        folder: of the table; ends in ``.parts``.
        schema: PAIR_SCHEMA or TRANSITION_SCHEMA.
        codes: folder of the codes files that the rows name.
    """

    def __init__(self, folder: Place, schema: pa.Schema, codes: Place) -> None:
        self._folder, self._schema, self._codes = folder, stored_schema(schema), codes
        self._more = [name for name in schema.names if name not in PAIR_SCHEMA.names]
        self._waiting: list[pa.Table] = []
        self._num_waiting = 0
        self._parts: list[ContentFile] = []
        self._digest = hashlib.sha256()

    def append(self, rows: pa.Table) -> None:
        """Add rows in stored form."""
        rows = rows.select(self._schema.names).cast(self._schema)
        columns = [rows["content"].to_pylist(), *([_texts(rows, self._more)] if self._more else [])]
        self._digest.update(b"".join(value for row in zip(*columns, strict=True) for value in row))
        self._waiting.append(rows)
        self._num_waiting += rows.num_rows
        if self._num_waiting >= PART_ROWS:
            self._cut(at_least=PART_ROWS)

    def finish(self) -> DatasetRef:
        """Write the manifest; the table exists when it returns.

        Raises:
            UserError: the table exists with other rows.
        """
        self._cut(at_least=1)
        manifest = TableManifest(
            num_rows=sum(part.num_rows for part in self._parts),
            rows_digest=self._digest.hexdigest(),
            parts=tuple(self._parts),
            codes=posixpath.relpath(str(self._codes), str(self._folder)),
        )
        if not create_bytes(_manifest_path(self._folder), manifest.to_bytes()):
            found = read_manifest(self._folder)
            if found.rows_digest != manifest.rows_digest:
                raise UserError(
                    f"{self._folder} holds other rows; delete it and run the same command again"
                )
        return _ref(self._folder, manifest)

    def _cut(self, at_least: int) -> None:
        """Write the waiting rows, as long as there are ``at_least`` so many."""
        rows = pa.concat_tables([self._schema.empty_table(), *self._waiting])
        while rows.num_rows >= at_least:
            part, rows = rows.slice(0, PART_ROWS), rows.slice(PART_ROWS)
            payload = to_parquet(part, self._schema)
            sha256 = hashlib.sha256(payload).hexdigest()
            create_bytes(_part_path(self._folder, sha256), payload)
            self._parts.append(ContentFile(sha256=sha256, num_rows=part.num_rows))
        self._waiting, self._num_waiting = [rows], rows.num_rows


def write_pairs(folder: Place, table: pa.Table, schema: pa.Schema, codes: Place) -> DatasetRef:
    """Write a table that is in memory, as `TableWriter`.

    Args:
        folder: of the table; ends in ``.parts``.
        table: rows of ``schema``, of equally many codes each.
        schema: PAIR_SCHEMA or TRANSITION_SCHEMA.
        codes: folder that the codes files go into.
    """
    writer = TableWriter(folder, schema, codes)
    for start in range(0, table.num_rows, _ROWS_WITH_CODES):
        writer.append(_stored(table.slice(start, _ROWS_WITH_CODES), codes))
    return writer.finish()


def stored_rows(source: DatasetRef | Place, schema: pa.Schema, codes: Place) -> Iterator[pa.Table]:
    """Stored form of a table's rows, in order, some at a time.

    The codes of a table that is a single file (of an older run) are written into ``codes``.

    Raises:
        UserError: the table is missing, damaged or of a newer version.
    """
    place = source.path if isinstance(source, DatasetRef) else source
    if place.suffix == PARTS:
        for part in _manifest_of(source).parts:
            yield _part(place, part.sha256, stored_schema(schema))
    else:
        for rows in iter_parquet(source, schema, schema.names):
            for start in range(0, rows.num_rows, _ROWS_WITH_CODES):
                yield _stored(rows.slice(start, _ROWS_WITH_CODES), codes)


def iter_parts(
    source: DatasetRef | Place,
    schema: pa.Schema,
    columns: Sequence[str],
    start: int = 0,
    stop: int | None = None,
) -> Iterator[pa.Table]:
    """Rows ``start`` to ``stop`` (exclusive) of a table in parts, in full form."""
    place = source.path if isinstance(source, DatasetRef) else source
    manifest = _manifest_of(source)
    step = _ROWS_WITH_CODES if _LISTS.keys() & set(columns) else PART_ROWS
    end = 0
    for part in manifest.parts:
        begin, end = end, end + part.num_rows
        first, last = max(start, begin), end if stop is None else min(stop, end)
        if first < last:
            rows = _part(place, part.sha256, stored_schema(schema))
            for at in range(first, last, step):
                cut = rows.slice(at - begin, min(step, last - at))
                yield _full(cut, schema, columns, _beside(place, manifest.codes))


def read_manifest(folder: Place) -> TableManifest:
    """The manifest of a table in parts.

    Raises:
        UserError: missing, damaged or of another version.
    """
    path = _manifest_path(folder)
    try:
        payload = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(missing(folder)) from error
    return TableManifest.from_bytes(payload, where=path)


def parts_ref(folder: Place) -> DatasetRef:
    """The reference of a table in parts; reads the manifest, not the rows."""
    return _ref(folder, read_manifest(folder))


def codes_folder(folder: Place) -> Place:
    """The folder of the codes files that the rows of a table in parts name."""
    return _beside(folder, read_manifest(folder).codes)


def files_of(folder: Place) -> set[Place]:
    """The parts and codes files of a table in parts.

    Raises:
        UserError: the manifest or a part is missing or damaged.
    """
    manifest = read_manifest(folder)
    codes = _beside(folder, manifest.codes)
    found = {_part_path(folder, part.sha256) for part in manifest.parts}
    for part in manifest.parts:
        # Not by its schema: the names of the codes are in every table.
        rows = pq.read_table(pa.BufferReader(_part_bytes(folder, part.sha256)), columns=["codes"])
        found |= {codes_path(codes, digest) for digest in pc.unique(rows["codes"]).to_pylist()}
    return found


def is_whole(place: Place) -> bool:
    """Whether a table, in parts or in one file, was written to its end."""
    return (_manifest_path(place) if place.suffix == PARTS else place).exists()


def _manifest_of(source: DatasetRef | Place) -> TableManifest:
    if not isinstance(source, DatasetRef):
        return read_manifest(source)
    manifest = read_manifest(source.path)
    if manifest.rows_digest != source.digest:
        raise UserError(damaged(source.path))
    return manifest


def _ref(folder: Place, manifest: TableManifest) -> DatasetRef:
    return DatasetRef(path=folder, num_rows=manifest.num_rows, digest=manifest.rows_digest)


@lru_cache(2)
def _part(folder: Place, sha256: str, schema: pa.Schema) -> pa.Table:
    """A part in stored form; those read last are kept, since shards are shorter than parts."""
    return from_parquet(_part_bytes(folder, sha256), schema, where=_part_path(folder, sha256))


def _part_bytes(folder: Place, sha256: str) -> bytes:
    path = _part_path(folder, sha256)
    try:
        payload = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(missing(path)) from error
    if hashlib.sha256(payload).hexdigest() != sha256:
        raise UserError(damaged(path))
    return payload


def _stored(rows: pa.Table, codes: Place) -> pa.Table:
    """Stored form of rows in full form; writes their codes as one file."""
    source, target, recognition = (list_matrix(rows, name) for name in _LISTS)
    places = np.arange(rows.num_rows)
    return store_codes(
        codes,
        rows.drop_columns(list(_LISTS)),
        np.concatenate([source, target]),
        places,
        places + rows.num_rows,
        recognition,
    )


def _full(rows: pa.Table, schema: pa.Schema, columns: Sequence[str], codes: Place) -> pa.Table:
    """The named columns of rows in stored form."""
    wanted = pa.schema([schema.field(name) for name in columns])
    if not _LISTS.keys() & set(columns):
        return rows.select(columns)
    files = rows["codes"].combine_chunks().dictionary_encode()
    folder, file_B = CodesFolder(codes, files.dictionary.to_pylist()), files.indices.to_numpy()
    values = {
        name: folder.read(kind, file_B, rows[row].to_numpy())
        for name, (kind, row) in _LISTS.items()
        if name in columns
    }
    return pa.table(
        [
            list_array(values[field.name], field) if field.name in values else rows[field.name]
            for field in wanted
        ],
        schema=wanted,
    )


def list_array(values_BL: npt.NDArray[Any], field: pa.Field) -> pa.ListArray:
    """A matrix as a list column."""
    num, length = values_BL.shape
    offsets = pa.array(np.arange(num + 1, dtype=np.int32) * length)
    values = pa.array(
        np.ravel(values_BL).astype(field.type.value_type.to_pandas_dtype(), copy=False)
    )
    return pa.ListArray.from_arrays(offsets, values, type=field.type)


def list_matrix(table: pa.Table, column: str) -> npt.NDArray[Any]:
    """A list column as a matrix [B, L]; [0, 0] without rows.

    Raises:
        ValueError: rows of different length.
    """
    chunks = [chunk for chunk in table[column].chunks if len(chunk)]
    if not chunks:
        return np.zeros((0, 0))
    lengths = np.unique(np.concatenate([chunk.value_lengths().to_numpy() for chunk in chunks]))
    if len(lengths) != 1:
        raise ValueError(f"rows of column {column} have different lengths: {lengths.tolist()}")
    # flatten(), not .values: a slice must not bring its neighbours along.
    parts = [chunk.flatten().to_numpy().reshape(len(chunk), lengths[0]) for chunk in chunks]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _content(
    rows: pa.Table,
    frames_FL: npt.NDArray[np.uint16],
    source_rows: npt.NDArray[np.integer],
    target_rows: npt.NDArray[np.integer],
    recognition_PL: npt.NDArray[np.float16],
) -> pa.Array:
    """Of every pair the first 16 bytes of the sha256 over its columns, codes and weights."""
    small = [field for field in PAIR_SCHEMA if field.name not in _LISTS]
    texts = _texts(rows, [field.name for field in small if pa.types.is_string(field.type)])
    numbers = [
        rows[field.name].to_numpy().astype(field.type.to_pandas_dtype())[:, None].view(np.uint8)
        for field in small
        if not pa.types.is_string(field.type)
    ]
    frames = _rows_as_bytes(np.asarray(frames_FL, np.uint16))
    columns = (
        texts,
        _rows_as_bytes(np.concatenate(numbers, axis=1)),
        map(frames.__getitem__, source_rows.tolist()),
        map(frames.__getitem__, target_rows.tolist()),
        _rows_as_bytes(recognition_PL),
    )
    digests = [hashlib.sha256(b"".join(row)).digest()[:16] for row in zip(*columns, strict=True)]
    return pa.array(digests, pa.binary(16))


def _rows_as_bytes(values_BN: npt.NDArray[Any]) -> list[memoryview]:
    payload = np.ascontiguousarray(values_BN).view(np.uint8).ravel().data
    width = values_BN.shape[1] * values_BN.itemsize
    return [payload[row * width : (row + 1) * width] for row in range(len(values_BN))]


def _texts(rows: pa.Table, names: Sequence[str]) -> list[bytes]:
    """Text columns of every row, each value after its length."""
    columns = [rows[name] for name in names]
    lengths = [pc.cast(pc.binary_length(column), pa.string()) for column in columns]
    both = [value for pair in zip(lengths, columns, strict=True) for value in pair]
    found: list[bytes] = pc.binary_join_element_wise(*both, ":").cast(pa.binary()).to_pylist()
    return found


def _manifest_path(folder: Place) -> Place:
    return folder / "manifest.json"


def _part_path(folder: Place, sha256: str) -> Place:
    return folder / "rows" / f"{sha256}.parquet"


def _beside(place: Place, relative: str) -> Place:
    for name in PurePosixPath(relative).parts:
        place = place.parent if name == ".." else place / name
    return place
