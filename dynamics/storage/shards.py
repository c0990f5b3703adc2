"""Shards: rows of a table cut by position, the unit of work and of resume."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import pyarrow as pa

from dynamics.core.progress import Progress
from dynamics.core.records import PAIR_SCHEMA, DatasetRef
from dynamics.storage.tables import iter_table

_COLUMNS = ["pair_id", "clip_class", "source_codes", "target_codes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Rows ``start`` to ``stop`` (exclusive) of a table."""

    start: int
    stop: int


AnyShard = TypeVar("AnyShard", bound=Shard)
_Given = TypeVar("_Given", bound=Shard, contravariant=True)


class ShardWorker(Protocol[_Given]):
    """A worker that loads its models when it is made, and then runs any number of shards."""

    def run(self, shard: _Given) -> int:
        """Do the work of a shard; returns its rows, durably written."""


MakeWorker = Callable[[], ShardWorker[AnyShard]]
"""Makes a worker in the process that shall run it; picklable, so without any model."""


def run_shards(
    make_worker: MakeWorker[AnyShard], shards: Sequence[AnyShard], what: str, progress: Progress
) -> None:
    """Run the shards one after the other in this process; all are durable when it returns."""
    total, done = num_rows(shards), 0
    progress(done, total, what)
    worker = make_worker()
    for shard in shards:
        done += worker.run(shard)
        progress(done, total, what)


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
