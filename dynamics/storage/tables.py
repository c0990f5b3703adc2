"""Parquet tables with equal bytes for equal rows, named by the sha256 of those bytes.

Equal bytes hold for one pyarrow version (its name is in every file); nothing else of the machine,
the time or the chunking of the table in memory reaches the file.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dynamics.core.errors import UserError
from dynamics.core.records import DatasetRef
from dynamics.storage.files import sha256_file, write_bytes

_ROWS_PER_GROUP = 16_384


def to_parquet(table: pa.Table, schema: pa.Schema) -> bytes:
    """The file content of ``table``, columns cast to ``schema`` and put in its order.

    Raises:
        ValueError: missing or surplus columns, a value that does not fit, a null where the schema
            allows none.
    """
    if set(table.column_names) != set(schema.names) or table.num_columns != len(schema):
        raise ValueError(f"columns {table.column_names} differ from {schema.names}")
    # One chunk, no metadata: how a table was put together must not show in the bytes.
    rows = table.select(schema.names).replace_schema_metadata(None).cast(schema).combine_chunks()
    sink = pa.BufferOutputStream()
    pq.write_table(
        rows,
        sink,
        version="2.6",
        compression="zstd",
        compression_level=3,
        row_group_size=_ROWS_PER_GROUP,
    )
    return bytes(sink.getvalue())


def write_table(path: Path, table: pa.Table, schema: pa.Schema) -> DatasetRef:
    """Write ``table`` as zstd Parquet, atomically and durably.

    Raises:
        ValueError: the table does not fit the schema, see `to_parquet`.
        UserError: the disk is full.
    """
    payload = to_parquet(table, schema)
    write_bytes(path, payload)
    digest = hashlib.sha256(payload).hexdigest()
    return DatasetRef(path=path, num_rows=table.num_rows, digest=digest)


def dataset_ref(path: Path) -> DatasetRef:
    """The reference of a Parquet file that exists.

    Raises:
        UserError: the file is missing or not Parquet.
    """
    try:
        num_rows = pq.read_metadata(path).num_rows
    except FileNotFoundError as error:
        raise UserError(_missing(path)) from error
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(_damaged(path)) from error
    return DatasetRef(path=path, num_rows=num_rows, digest=sha256_file(path))


def read_table(
    source: DatasetRef | Path, schema: pa.Schema, columns: Sequence[str] | None = None
) -> pa.Table:
    """Read a table, all columns or the named ones in the named order.

    With a `DatasetRef` the bytes that are parsed are the bytes whose digest was checked.

    Raises:
        UserError: missing or damaged file, another digest than the reference's, another schema.
    """
    path = source.path if isinstance(source, DatasetRef) else source
    try:
        payload = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(_missing(path)) from error
    if isinstance(source, DatasetRef) and hashlib.sha256(payload).hexdigest() != source.digest:
        raise UserError(_damaged(path))
    return from_parquet(payload, schema, where=path, columns=columns)


def from_parquet(
    payload: bytes, schema: pa.Schema, *, where: Path, columns: Sequence[str] | None = None
) -> pa.Table:
    """Inverse of `to_parquet`; ``where`` is named in errors.

    A column that is added to a schema is nullable: in a file that was written before, its values
    are null.

    Raises:
        UserError: not Parquet, or another schema.
    """
    try:
        file = pq.ParquetFile(pa.BufferReader(payload))
        if misfit := _misfit(file.schema_arrow, schema):
            raise UserError(f"{where} {misfit}")
        names = schema.names if columns is None else list(columns)
        rows = file.read(columns=names)
        wanted = pa.schema([schema.field(name) for name in names])
        values = [
            rows[field.name]
            if field.name in rows.column_names
            else pa.nulls(file.metadata.num_rows, field.type)
            for field in wanted
        ]
        # Parquet names the values of a list "element", Arrow "item": the cast keeps the schema's.
        return pa.table(values, names).cast(wanted)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(_damaged(where)) from error


def _misfit(found: pa.Schema, schema: pa.Schema) -> str:
    """The first reason why a file with the columns ``found`` holds no rows of ``schema``, or ""."""
    fields = {field.name: field for field in found}
    if missing := [f.name for f in schema if f.name not in fields and not f.nullable]:
        return f"lacks the columns {missing}: it has {found.names}"
    if unknown := sorted((Counter(found.names) - Counter(schema.names)).keys()):
        return f"was written by a newer version: its columns {unknown} are unknown to this one"
    for field in schema:
        here = fields.get(field.name, field)
        if here.type != field.type or (here.nullable and not field.nullable):
            nulls = "nulls" if here.nullable else "no nulls"
            return f"has {here.type} with {nulls} in {field.name}, expected {field.type}"
    return ""


def codes_matrix(table: pa.Table, column: str) -> npt.NDArray[np.int64]:
    """A list column of image codes as int64 [B, L].

    Raises:
        ValueError: rows of different length.
    """
    return _matrix(table, column).astype(np.int64)


def float_matrix(table: pa.Table, column: str) -> npt.NDArray[np.float32]:
    """A list column of floats, e.g. ``recognition``, as float32 [B, L].

    Raises:
        ValueError: rows of different length.
    """
    return _matrix(table, column).astype(np.float32)


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


def _matrix(table: pa.Table, column: str) -> npt.NDArray[Any]:
    """Shape [B, L]; [0, 0] without rows."""
    chunks = [chunk for chunk in table[column].chunks if len(chunk)]
    if not chunks:
        return np.zeros((0, 0))
    lengths = np.unique(np.concatenate([chunk.value_lengths().to_numpy() for chunk in chunks]))
    if len(lengths) != 1:
        raise ValueError(f"rows of column {column} have different lengths: {lengths.tolist()}")
    # flatten(), not .values: a slice must not bring its neighbours along.
    return np.concatenate(
        [chunk.flatten().to_numpy().reshape(len(chunk), lengths[0]) for chunk in chunks]
    )


def _missing(path: Path) -> str:
    return f"{path} does not exist; run the stage that writes it first"


def _damaged(path: Path) -> str:
    return f"{path} is damaged or was changed; delete it and run the same command again"
