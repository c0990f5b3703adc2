"""Ray Data: items -> read tasks on all nodes -> a pool of actors with a worker each -> results.

Of a stream's items Ray holds a few at a time: it reads as fast as the actors take rows (its
backpressure), an item is one block of one row, and what is left of it in the end is a count. Ray
starts killed actors and tasks again, also those of a lost node, and repeats their items; the parts
that they write decide what is done.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from itertools import count, islice
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, TaskPoolStrategy
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator

from dynamics.core.errors import UserError
from dynamics.core.progress import Progress
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


class _Worker:
    """An actor of the pool."""

    def __init__(self, make_worker: Callable[[], Work[Any]], items: _Items) -> None:
        self._make_worker = make_worker
        self._items = items

    @cached_property
    def _worker(self) -> Work[Any]:
        """Made at the first item: Ray passes on an actor's own errors, not its constructor's."""
        return self._make_worker()

    def __call__(self, block: pa.Table) -> pa.Table:
        """Work on the item of a block; its part is durable when the result is sent."""
        done = self._worker.run(self._items[block["id"][0].as_py()], _unpacked(block["rows"][0]))
        return pa.table({"count": [done.count], "found": _packed(done.found)})


class _Watch(ExecutionCallback):
    """Looks at the queue of a stream once a second, and says when its actors find no room.

    Args:
        stream: what it looks at.
        progress: is told what the stream waits for.
        need: resources of an actor.
    """

    def __init__(self, stream: Stream[Any], progress: Progress, need: Mapping[str, float]) -> None:
        self.queued = 0
        self.done = stream.done
        self._stream = stream
        self._progress = progress
        self._need = need
        self._look_at = 0.0
        self._idle_since = time.monotonic()

    def on_execution_step(self, executor: Any) -> None:
        """Look, in the thread in which Ray runs the stream.

        Raises:
            UserError: there is no node for an actor, and none will come.
        """
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + 1
        for operator, state in executor._topology.items():
            if isinstance(operator, ActorPoolMapOperator):
                self.queued = state.total_enqueued_input_blocks()
                if operator.get_actor_info().running:
                    self._idle_since = now
        if now - self._idle_since < demand.PATIENCE_S:
            return
        if line := demand.missing(self._need, 1):
            raise UserError(f"{self._stream.what} {line}")
        if line := demand.waiting(self._need, 1):
            self._progress(self.done, self._stream.total, self._stream.what, note=line)


_watches: dict[int, _Watch] = {}
"""Watches of running streams. Ray copies what it calls, and sends it to workers, so that is only a
number of this table."""
_numbers = count()


def _watch_of(number: int) -> _Watch:
    return _watches[number]


def run_stream_on_ray(
    stream: Stream[Any], progress: Progress, *, num_actors: int, num_gpus: float
) -> Iterator[Done]:
    """`dynamics.storage.streams.run_stream` over at most ``num_actors``, each with its GPUs."""
    progress(stream.done, stream.total, stream.what)
    items = _Items(iter(stream.items))
    if not items.count:
        return
    size = min(num_actors, items.count)
    a_task = max(1 if stream.costly_reads else _CHEAP_READS, -(-items.count // _MAX_TASKS))
    ids = np.arange(items.count)
    tasks = [pa.table({"id": ids[at : at + a_task]}) for at in range(0, items.count, a_task)]
    source = ray.data.from_blocks(tasks)
    watch = _Watch(stream, progress, {"CPU": 1, "GPU": num_gpus} if num_gpus else {"CPU": 1})
    number = next(_numbers)
    watching: Any = partial(_watch_of, number)
    source.context.custom_execution_callback_classes = [watching]
    # Every row is a block of its own, however large: a repetition repeats one item.
    source.context.target_max_block_size = 1
    # Waiting for nodes that come up, or for one long item, is no failure.
    source.context.execution_no_progress_timeout_s = -1
    # An actor loads a model: it is added when all have work, and stays to the end.
    source.context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
    source.context.autoscaling_config.actor_pool_util_downscaling_threshold = -1.0
    results = source.map_batches(
        partial(_read, stream.read, items),
        batch_size=1,
        batch_format="pyarrow",
        # Every process that Ray starts for a read imports for seconds first.
        compute=TaskPoolStrategy(None if stream.costly_reads else min(size, len(tasks))),
        num_cpus=0.5,
    ).map_batches(
        _Worker,
        fn_constructor_args=(stream.make_worker, items),
        batch_size=1,
        batch_format="pyarrow",
        # From one actor up: all at once may leave no CPU to reads (4 on 2 CPUs hung).
        compute=ActorPoolStrategy(min_size=1, max_size=size),
        # Other resources than a read task's keep Ray from fusing the two.
        num_cpus=1,
        num_gpus=num_gpus,
    )
    blocks: Any = results.iter_batches(batch_size=None, batch_format="pyarrow")
    _watches[number] = watch
    try:
        for block in blocks:
            for count_, found in zip(block["count"], block["found"], strict=True):
                result = Done(count=count_.as_py(), found=_unpacked(found))
                watch.done += result.count
                progress(watch.done, stream.total, stream.what, queued=watch.queued)
                yield result
    finally:
        del _watches[number]


def _read(read: Callable[[Any], pa.Table], items: _Items, block: pa.Table) -> pa.Table:
    """The item of a block, with its rows as one value: an item stays one row of one block."""
    return block.append_column("rows", _packed(read(items[block["id"][0].as_py()])))


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
