"""Tables: one Parquet file, named by the sha256 of its bytes, or pairs in parts (`pairs`)."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dynamics.core.errors import UserError
from dynamics.core.places import Place
from dynamics.core.records import DatasetRef
from dynamics.storage.files import write_bytes
from dynamics.storage.pairs import PARTS, iter_parts, list_matrix, parts_ref
from dynamics.storage.parquet import (
    check_seal,
    damaged,
    fitted,
    from_parquet,
    iter_parquet,
    missing,
    sealed_parquet,
)


def write_table(path: Place, table: pa.Table, schema: pa.Schema) -> DatasetRef:
    """Write ``table`` as zstd Parquet, atomically and durably.

    Raises:
        ValueError: the table does not fit the schema, see `to_parquet`.
        UserError: the disk is full.
    """
    payload = sealed_parquet(fitted(table, schema))
    write_bytes(path, payload)
    digest = hashlib.sha256(payload).hexdigest()
    return DatasetRef(path=path, num_rows=table.num_rows, digest=digest)


def dataset_ref(place: Place) -> DatasetRef:
    """The reference of a table that exists, in one Parquet file or in parts.

    Raises:
        UserError: the table is missing or damaged.
    """
    if place.suffix == PARTS:
        return parts_ref(place)
    try:
        payload = check_seal(place.read_bytes())
        num_rows = pq.read_metadata(pa.BufferReader(payload)).num_rows
    except FileNotFoundError as error:
        raise UserError(missing(place)) from error
    except pa.ArrowInvalid as error:
        raise UserError(damaged(place)) from error
    return DatasetRef(path=place, num_rows=num_rows, digest=hashlib.sha256(payload).hexdigest())


def read_table(
    source: DatasetRef | Place, schema: pa.Schema, columns: Sequence[str] | None = None
) -> pa.Table:
    """Read a table, all columns or the named ones in the named order.

    With a `DatasetRef` the bytes that are parsed are the bytes whose digest was checked.

    Raises:
        UserError: missing or damaged file, another digest than the reference's, another schema.
    """
    path = source.path if isinstance(source, DatasetRef) else source
    if path.suffix == PARTS:
        names = schema.names if columns is None else columns
        empty = schema.empty_table().select(names)
        return pa.concat_tables([empty, *iter_table(source, schema, names)])
    try:
        payload = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(missing(path)) from error
    if isinstance(source, DatasetRef) and hashlib.sha256(payload).hexdigest() != source.digest:
        raise UserError(damaged(path))
    return from_parquet(payload, schema, where=path, columns=columns)


def iter_table(
    source: DatasetRef | Place,
    schema: pa.Schema,
    columns: Sequence[str] | None = None,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[pa.Table]:
    """Rows ``start`` to ``stop`` (exclusive) of a table, in order, some at a time.

    Raises:
        UserError: as `read_table`.
    """
    place = source.path if isinstance(source, DatasetRef) else source
    names = schema.names if columns is None else columns
    read = iter_parts if place.suffix == PARTS else iter_parquet
    return read(source, schema, names, start, stop)


def take_rows(tables: Iterable[pa.Table], rows: npt.NDArray[np.integer]) -> pa.Table:
    """Some rows of a table that is read a piece at a time, in the order of ``rows``."""
    found, start, order = [], 0, np.argsort(rows, kind="stable")
    for table in tables:
        here = rows[order[slice(*np.searchsorted(rows[order], [start, start + table.num_rows]))]]
        found.append(table.take(pa.array(here - start)))
        start += table.num_rows
    return pa.concat_tables(found).take(pa.array(np.argsort(order, kind="stable")))


def codes_matrix(table: pa.Table, column: str) -> npt.NDArray[np.int64]:
    """A list column of image codes as int64 [B, L].

    Raises:
        ValueError: rows of different length.
    """
    return list_matrix(table, column).astype(np.int64)


def with_columns(table: pa.Table, columns: Mapping[str, Sequence[Any]]) -> pa.Table:
    """The table with other values, one for each row, in some of its columns."""
    for name, values in columns.items():
        place, field = table.column_names.index(name), table.schema.field(name)
        table = table.set_column(place, field, pa.array(values, field.type))
    return table


def score_column(labels: pa.Table, name: str) -> npt.NDArray[np.float64]:
    """One of the ``scores`` of LABEL_SCHEMA rows, float64 [B]; NaN where a row lacks it."""
    values = pc.map_lookup(labels["scores"], query_key=name, occurrence="first")
    column: npt.NDArray[np.float64] = pc.fill_null(values, float("nan")).to_numpy()
    return column.astype(np.float64)


def score_names(labels: pa.Table) -> set[str]:
    """The scores that at least one of the LABEL_SCHEMA rows has."""
    found: set[str] = set()
    for chunk in labels["scores"].chunks:
        # The keys of a slice are those of the whole array: the offsets say which are its own.
        first, last = (chunk.offsets[place].as_py() for place in (0, -1))
        found.update(pc.unique(chunk.keys[first:last]).to_pylist())
    return found
