"""Parquet files with equal bytes for equal rows.

Equal bytes hold for one pyarrow version (its name is in every file); nothing else of the machine,
the time or the chunking of the table in memory reaches the file.

A file that no digest names elsewhere is sealed: its footer holds the sha256 of its other bytes.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dynamics.core.errors import UserError
from dynamics.core.places import Place
from dynamics.core.records import DatasetRef
from dynamics.storage.files import local_copy, sha256_file

_ROWS_PER_GROUP = 16_384
_SEAL = "dynamics.sha256"
_BLANK = "0" * 64


def to_parquet(table: pa.Table, schema: pa.Schema) -> bytes:
    """The file content of ``table`` as `fitted`."""
    return _file(fitted(table, schema), {})


def fitted(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with its columns cast to ``schema`` and put in its order, in one chunk.

    Raises:
        ValueError: missing or surplus columns, a value that does not fit, a null where the schema
            allows none.
    """
    if set(table.column_names) != set(schema.names) or table.num_columns != len(schema):
        raise ValueError(f"columns {table.column_names} differ from {schema.names}")
    # One chunk, no metadata: how a table was put together must not show in the bytes.
    return table.select(schema.names).replace_schema_metadata(None).cast(schema).combine_chunks()


def sealed_parquet(rows: pa.Table) -> bytes:
    """The file content of rows as they are, with its own digest, see `check_seal`."""
    payload = _file(rows, {_SEAL: _BLANK})
    start = _seal_start(payload)
    digest = hashlib.sha256(payload).hexdigest().encode()
    return payload[:start] + digest + payload[start + len(digest) :]


def check_seal(payload: bytes) -> bytes:
    """The payload of a sealed file, or of one that never was.

    Raises:
        pa.ArrowInvalid: its bytes are not those that were sealed, or its end is missing.
    """
    if start := _seal_start(payload):
        stop = start + len(_BLANK)
        found = hashlib.sha256(payload[:start] + _BLANK.encode() + payload[stop:]).hexdigest()
        if found.encode() != payload[start:stop]:
            raise pa.ArrowInvalid("the content does not match its digest")
    elif any(map(_is_damaged_seal, pq.read_metadata(pa.BufferReader(payload)).metadata or ())):
        raise pa.ArrowInvalid("the name of its digest is damaged")
    return payload


def _is_damaged_seal(key: bytes) -> bool:
    """True for the seal's name with one wrong byte."""
    right = _SEAL.encode()
    return len(key) == len(right) and sum(a != b for a, b in zip(key, right, strict=True)) == 1


def _seal_start(payload: bytes) -> int:
    """Where the digest begins, behind its name and two bytes with its type and length; or 0."""
    start = payload.rfind(_SEAL.encode())
    return start + len(_SEAL) + 2 if start > 0 else 0


def _file(rows: pa.Table, metadata: dict[str, str]) -> bytes:
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink, rows.schema, version="2.6", compression="zstd", compression_level=1
    ) as writer:
        writer.write_table(rows, row_group_size=_ROWS_PER_GROUP)
        writer.add_key_value_metadata(metadata)
    return bytes(sink.getvalue())


def from_parquet(
    payload: bytes, schema: pa.Schema, *, where: Place, columns: Sequence[str] | None = None
) -> pa.Table:
    """Inverse of `to_parquet`; ``where`` is named in errors.

    A column that is added to a schema is nullable: in a file that was written before, its values
    are null.

    Raises:
        UserError: not Parquet, or another schema.
    """
    try:
        file = _opened(pa.BufferReader(check_seal(payload)), schema, where)
        names = schema.names if columns is None else list(columns)
        return _fitted(file.read(columns=names), schema, names)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(damaged(where)) from error


def iter_parquet(
    source: DatasetRef | Place,
    schema: pa.Schema,
    columns: Sequence[str],
    start: int = 0,
    stop: int | None = None,
) -> Iterator[pa.Table]:
    """Rows ``start`` to ``stop`` (exclusive) of a file, read by row groups.

    Raises:
        UserError: as `from_parquet`; the file is missing, or has another digest than the reference.
    """
    path = source.path if isinstance(source, DatasetRef) else source
    try:
        if isinstance(source, DatasetRef) and sha256_file(local_copy(path)) != source.digest:
            raise UserError(damaged(path))
        file, end = _opened(local_copy(path), schema, path), 0
        for group in range(file.num_row_groups):
            begin, end = end, end + file.metadata.row_group(group).num_rows
            first, last = max(start, begin), end if stop is None else min(stop, end)
            if first < last:
                rows = _fitted(file.read_row_group(group, columns=columns), schema, columns)
                yield rows.slice(first - begin, last - first)
    except FileNotFoundError as error:
        raise UserError(missing(path)) from error
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(damaged(path)) from error


def _opened(source: pa.BufferReader | Path, schema: pa.Schema, where: Place) -> pq.ParquetFile:
    file = pq.ParquetFile(source)
    if misfit := _misfit(file.schema_arrow, schema):
        raise UserError(f"{where} {misfit}")
    return file


def _fitted(rows: pa.Table, schema: pa.Schema, names: Sequence[str]) -> pa.Table:
    """The named columns as the schema has them; those that the file lacks are null."""
    wanted = pa.schema([schema.field(name) for name in names])
    values = [
        rows[field.name] if field.name in rows.column_names else pa.nulls(rows.num_rows, field.type)
        for field in wanted
    ]
    # Parquet names the values of a list "element", Arrow "item": the cast keeps the schema's.
    return pa.table(values, names).cast(wanted)


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


def missing(place: Place) -> str:
    """Message of a table that is not there."""
    return f"{place} does not exist; run the stage that writes it first"


def damaged(place: Place) -> str:
    """Message of a table whose bytes are not those that were written."""
    return f"{place} is damaged or was changed; delete it and run the same command again"
