"""Shards: rows of a table cut by position, the unit of work and of resume."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dynamics.core.records import DatasetRef

_COLUMNS = ["pair_id", "clip_class", "source_codes", "target_codes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Rows ``start`` to ``stop`` (exclusive) of a table."""

    start: int
    stop: int


def cut(num_rows: int, shard_rows: int) -> list[Shard]:
    """All shards of a table; the last one may be shorter."""
    starts = range(0, num_rows, shard_rows)
    return [Shard(start=start, stop=min(start + shard_rows, num_rows)) for start in starts]


def read_shard(pool: DatasetRef, shard: Shard, columns: Sequence[str] = _COLUMNS) -> pa.Table:
    """The shard's rows; reads only the row groups that hold them."""
    file = pq.ParquetFile(pool.path)
    sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    ends = np.cumsum(sizes)
    first = int(np.searchsorted(ends, shard.start, side="right"))
    last = int(np.searchsorted(ends, shard.stop, side="left"))
    rows = file.read_row_groups(list(range(first, last + 1)), columns=list(columns))
    return rows.slice(shard.start - (int(ends[first]) - sizes[first]), shard.stop - shard.start)
