"""Shards: rows of a table cut by position, the unit of work and of resume."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from dynamics.core.records import PAIR_SCHEMA, DatasetRef
from dynamics.storage.tables import iter_table

_COLUMNS = ["pair_id", "clip_class", "source_codes", "target_codes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Rows ``start`` to ``stop`` (exclusive) of a table."""

    start: int
    stop: int


def num_rows(shards: Sequence[Shard]) -> int:
    """Rows of all the shards together."""
    return sum(shard.stop - shard.start for shard in shards)


def cut(table_rows: int, shard_rows: int) -> list[Shard]:
    """All shards of a table; the last one may be shorter."""
    starts = range(0, table_rows, shard_rows)
    return [Shard(start=start, stop=min(start + shard_rows, table_rows)) for start in starts]


def read_shard(
    source: DatasetRef,
    shard: Shard,
    columns: Sequence[str] = _COLUMNS,
    schema: pa.Schema = PAIR_SCHEMA,
) -> pa.Table:
    """The shard's rows; reads only the parts or row groups that hold them."""
    rows = iter_table(source.path, schema, columns, shard.start, shard.stop)
    return pa.concat_tables([schema.empty_table().select(columns), *rows])
