"""Streams: the one shape of all work that goes over many rows.

    items ─▶ READ: no model; an item to its rows ─▶ WORK: has the model; writes its part, durably

Ingest, labels, evaluation, leakage and AURORA-BENCH are streams. Reads run ahead of the work, in
threads here and in tasks on all nodes on Ray. The work of an item may be done twice, after a kill,
and in any order: its part is named by what is in it, so nothing changes.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import pyarrow as pa

from dynamics.core.progress import Progress

Item = TypeVar("Item")
_Given = TypeVar("_Given", contravariant=True)

NUM_READERS = 2
"""Threads that read ahead in one process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The result of an item whose part is durable."""

    count: int
    """Its share of `Stream.total`."""
    found: pa.Table | None = None
    """A small table for the one who started the stream."""


class Work(Protocol[_Given]):
    """A worker that loads its models when it is made, and then works on any number of items."""

    def run(self, item: _Given, rows: pa.Table) -> Done:
        """Work on an item, of which ``rows`` were read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream(Generic[Item]):
    """Work on many items. What it holds is picklable, so without any model."""

    what: str
    """Its name in progress messages."""
    items: Iterable[Item]
    """Listed while the stream runs."""
    total: int
    """Amount of all the work, for progress."""
    done: int = 0
    """Amount that was done before."""
    read: Callable[[Item], pa.Table]
    """Reads the rows of an item, with at least one column."""
    make_worker: Callable[[], Work[Item]]
    """Makes a worker in the process that shall run it."""
    stop_reading: Callable[[], None] | None = None
    """Ends the reads that are in progress in this process; called when a stream ends."""
    costly_reads: bool = False
    """Reading is work, as decoding is: wherever a CPU is free, one reads. Else a reader a worker is
    enough."""


RunStream = Callable[[Stream[Any], Progress], Iterator[Done]]
"""Runs a stream: `run_stream`, or the same elsewhere. Results come in any order; whoever has seen
enough of them may stop."""


def run_stream(stream: Stream[Item], progress: Progress) -> Iterator[Done]:
    """Run a stream in this process; its items are worked on in their order."""
    done = stream.done
    progress(done, stream.total, stream.what)
    worker: Work[Item] | None = None
    with closing(read_ahead(stream.read, stream.items, stream.stop_reading)) as ahead:
        for item, rows in ahead:
            worker = worker or stream.make_worker()
            result = worker.run(item, rows)
            done += result.count
            progress(done, stream.total, stream.what)
            yield result


def read_ahead(
    read: Callable[[Item], Any],
    items: Iterable[Item],
    stop_reading: Callable[[], None] | None = None,
) -> Generator[tuple[Item, Any]]:
    """Every item with what ``read`` returns for it, in order; a few are read ahead."""
    threads = ThreadPoolExecutor(NUM_READERS, thread_name_prefix="read")
    ahead: deque[tuple[Item, Future[Any]]] = deque()
    try:
        for item in items:
            ahead.append((item, threads.submit(read, item)))
            if len(ahead) > 2 * NUM_READERS:
                first, future = ahead.popleft()
                yield first, future.result()
        while ahead:
            first, future = ahead.popleft()
            yield first, future.result()
    finally:
        # Nobody waits for reads in progress any more.
        threads.shutdown(wait=False, cancel_futures=True)
        if stop_reading is not None:
            stop_reading()
        threads.shutdown()
