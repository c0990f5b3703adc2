"""Ray Data: items -> reads on all nodes -> workers in a process each -> results.

    on GPUs   read tasks -> a pool of actors, which load their models and end with the stream
    on CPUs   tasks that read and work, in processes that Ray keeps: the next imports nothing

Of a stream's items Ray holds a few at a time: it reads as fast as actors take rows (its
backpressure), an item is one block of one row, and what is left of it in the end is a count. Ray
starts killed actors and tasks again, also those of a lost node, and repeats their items; the parts
that they write decide what is done.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, TaskPoolStrategy
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.operators.map_operator import MapOperator

from dynamics.core.errors import UserError
from dynamics.core.progress import Detail, Progress
from dynamics.storage.streams import Done, Stream, Work
from ray_jobs import demand

_ITEMS_PER_OBJECT = 32
"""Items that are listed, sent and held together."""
_CHEAP_READS = 8
"""Items that a read task reads one after the other, where reading takes less than Ray's turns."""
_MAX_TASKS = 4096
"""Most read tasks; each one reads its items one after the other."""


class _Items:
    """The items of a stream, in Ray's object store."""

    def __init__(self, items: Iterator[Any]) -> None:
        self._parts: list[ray.ObjectRef[list[Any]]] = []
        self.count = 0
        while part := list(islice(items, _ITEMS_PER_OBJECT)):
            self._parts.append(ray.put(part))
            self.count += len(part)

    def __getitem__(self, number: int) -> Any:
        return ray.get(self._parts[number // _ITEMS_PER_OBJECT])[number % _ITEMS_PER_OBJECT]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What Ray runs of a stream, item by item."""

    number: int
    """The stream's, among those of its driver."""
    read: Callable[[Any], pa.Table]
    make_worker: Callable[[], Work[Any]]
    items: _Items


_kept: dict[int, Work[Any]] = {}
"""The worker of the last stream of which this process has worked on an item, by its number."""


def _read(job: _Job, block: pa.Table) -> pa.Table:
    """The item of a block, with its rows as one value: an item stays one row of one block."""
    return block.append_column("rows", _packed(job.read(job.items[block["id"][0].as_py()])))


def _work(job: _Job, block: pa.Table) -> Iterator[pa.Table]:
    """Work on the item of a block; its part is durable when the result is sent.

    A first row without a count says that it has begun.
    """
    number = block["id"][0].as_py()
    yield _result(number, None, None)
    # Made here: Ray passes on the errors of work, not those of an actor's constructor.
    if job.number not in _kept:
        _kept.clear()  # first: there may be no room for two models
        _kept[job.number] = job.make_worker()
    done = _kept[job.number].run(job.items[number], _unpacked(block["rows"][0]))
    yield _result(number, done.count, done.found)


def _read_and_work(job: _Job, block: pa.Table) -> Iterator[pa.Table]:
    yield from _work(job, _read(job, block))


class _Actor:
    """`_work` in an actor, since a GPU's memory is free again when its process ends."""

    def __init__(self, job: _Job) -> None:
        self._job = job

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        yield from _work(self._job, block)


def _result(number: int, count: int | None, found: pa.Table | None) -> pa.Table:
    return pa.table(
        {"id": [number], "count": pa.array([count], pa.int64()), "found": _packed(found)}
    )


class _Watch(ExecutionCallback):
    """Looks at the queue of a stream once a second, and says when its workers find no room.

    Args:
        stream: what it looks at.
        progress: is told what the stream waits for.
        need: resources of a worker.
    """

    def __init__(self, stream: Stream[Any], progress: Progress, need: Mapping[str, float]) -> None:
        self.queued = 0
        self.done = stream.done
        self.begun: set[int] = set()
        """Items at work, by their numbers."""
        self._stream = stream
        self._progress = progress
        self._need = need
        self._look_at = 0.0
        self._idle_since = time.monotonic()

    def on_execution_step(self, executor: Any) -> None:
        """Look, in the thread in which Ray runs the stream.

        Raises:
            UserError: there is no node for a worker, and none will come.
        """
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + 1
        for operator, state in executor._topology.items():
            if isinstance(operator, MapOperator):  # the last one works
                self.queued = state.total_enqueued_input_blocks()
        if self.begun:
            self._idle_since = now
        if now - self._idle_since < demand.PATIENCE_S:
            return
        if line := demand.missing(self._need, 1):
            raise UserError(f"{self._stream.what} {line}")
        if line := demand.waiting(self._need, 1):
            self._progress(self.done, self._stream.total, self._stream.what, Detail(note=line))


_watches: dict[int, _Watch] = {}
"""Watches of running streams. Ray copies what it calls, and sends it to workers, so that is only a
number of this table."""
_numbers = count()


def _watch_of(number: int) -> _Watch:
    return _watches[number]


def run_stream_on_ray(
    stream: Stream[Any], progress: Progress, *, num_actors: int, num_gpus: float
) -> Iterator[Done]:
    """`dynamics.storage.streams.run_stream` in at most ``num_actors``, each with its GPUs."""
    progress(stream.done, stream.total, stream.what)
    items = _Items(iter(stream.items))
    if not items.count:
        return
    number = next(_numbers)
    job = _Job(number=number, read=stream.read, make_worker=stream.make_worker, items=items)
    watch = _Watch(stream, progress, {"CPU": 1, "GPU": num_gpus} if num_gpus else {"CPU": 1})
    size = min(num_actors, items.count)
    if num_gpus:
        results = _on_actors(job, size, num_gpus, costly_reads=stream.costly_reads)
    else:
        results = _on_tasks(job, size)
    blocks: Any = results.iter_batches(batch_size=None, batch_format="pyarrow")
    _watches[number] = watch
    try:
        for block in blocks:
            for row in zip(block["id"], block["count"], block["found"], strict=True):
                item, count_ = row[0].as_py(), row[1].as_py()
                if count_ is None:
                    watch.begun.add(item)
                    continue
                watch.begun.discard(item)
                watch.done += count_
                progress(watch.done, stream.total, stream.what, Detail(queued=watch.queued))
                yield Done(count=count_, found=_unpacked(row[2]))
    finally:
        del _watches[number]


def _on_tasks(job: _Job, size: int) -> ray.data.Dataset:
    return _ids(job, 1).map_batches(
        partial(_read_and_work, job),
        batch_size=1,
        batch_format="pyarrow",
        compute=TaskPoolStrategy(size),
        num_cpus=1,
    )


def _on_actors(job: _Job, size: int, num_gpus: float, *, costly_reads: bool) -> ray.data.Dataset:
    ids = _ids(job, 1 if costly_reads else _CHEAP_READS)
    # An actor loads a model: it is added when all have work, and stays to the end.
    ids.context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
    ids.context.autoscaling_config.actor_pool_util_downscaling_threshold = -1.0
    return ids.map_batches(
        partial(_read, job),
        batch_size=1,
        batch_format="pyarrow",
        # Every process that Ray starts for a read imports for seconds first.
        compute=TaskPoolStrategy(None if costly_reads else size),
        num_cpus=0.5,
    ).map_batches(
        _Actor,
        fn_constructor_args=(job,),
        batch_size=1,
        batch_format="pyarrow",
        # From one actor up: all at once may leave no CPU to reads (4 on 2 CPUs hung).
        compute=ActorPoolStrategy(min_size=1, max_size=size),
        # Other resources than a read task's keep Ray from fusing the two.
        num_cpus=1,
        num_gpus=num_gpus,
    )


def _ids(job: _Job, a_task: int) -> ray.data.Dataset:
    """The items' numbers, ``a_task`` of them or more to a task."""
    ids = np.arange(job.items.count)
    a_task = max(a_task, -(-len(ids) // _MAX_TASKS))
    source: ray.data.Dataset = ray.data.from_blocks(
        [pa.table({"id": ids[at : at + a_task]}) for at in range(0, len(ids), a_task)]
    )
    watching: Any = partial(_watch_of, job.number)
    source.context.custom_execution_callback_classes = [watching]
    # Every row is a block of its own, however large: a repetition repeats one item.
    source.context.target_max_block_size = 1
    # Waiting for nodes that come up, or for one long item, is no failure.
    source.context.execution_no_progress_timeout_s = -1
    return source


def _packed(rows: pa.Table | None) -> pa.Array:
    """A table as a column of one value, in Arrow's own format; not copied again."""
    if rows is None:
        return pa.nulls(1, pa.large_binary())
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as stream:
        stream.write_table(rows)
    payload = sink.getvalue()
    ends = pa.py_buffer(np.array([0, payload.size], np.int64))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, ends, payload])


def _unpacked(value: pa.LargeBinaryScalar) -> pa.Table | None:
    """Inverse of `_packed`."""
    buffer = value.as_buffer()
    return None if buffer is None else pa.ipc.open_stream(buffer).read_all()
