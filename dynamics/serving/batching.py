"""Batching: requests that wait at the same time go through the model together.

A batch never waits to fill up: it takes the requests that arrived while the one before it was
computed. So a single request starts at once, and batches grow with the load.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any


class ExpiredError(Exception):
    """The request's deadline passed before its turn came."""


@dataclass(slots=True, eq=False)
class _Waiting:
    key: Hashable
    item: Any
    rows: int
    deadline: float
    future: "asyncio.Future[Any]"


class Batcher:
    """Groups submitted items by key and runs the groups in threads of its own.

    Args:
        run: Called with a key and its items, in a thread; returns one result an item, where an
            exception stands for one item's failure.
        max_rows: Most rows of a group; one item may exceed it alone.
        num_threads: Groups that run at the same time.
    """

    def __init__(
        self,
        run: Callable[[Any, Sequence[Any]], Sequence[Any]],
        *,
        max_rows: int,
        num_threads: int = 1,
    ) -> None:
        self._run = run
        self._max_rows = max_rows
        self._num_threads = num_threads
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="batch")
        self._waiting: deque[_Waiting] = deque()
        self._num_running = 0
        self._workers: set[asyncio.Task[None]] = set()  # the loop itself holds tasks only weakly
        self.sizes: Counter[int] = Counter()
        """Histogram: batch size to number of batches."""
        self.seconds = 0.0
        """Wall time of all batches, added up."""

    @property
    def depth(self) -> int:
        """Items that wait."""
        return sum(not waiting.future.done() for waiting in self._waiting)

    async def submit(self, key: Hashable, item: Any, *, rows: int, deadline: float) -> Any:
        """The item's result. Cancelling the caller takes a waiting item out of the queue.

        Args:
            key: Items of one key may run together.
            item: What ``run`` gets.
            rows: The item's share of ``max_rows``.
            deadline: Time on the clock of `time.monotonic`.

        Raises:
            ExpiredError: the deadline passed before its turn came.
        """
        loop = asyncio.get_running_loop()
        waiting = _Waiting(key, item, rows, deadline, loop.create_future())
        self._waiting.append(waiting)
        if self._num_running < self._num_threads:
            self._num_running += 1
            worker = loop.create_task(self._work())
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)
        return await waiting.future

    async def _work(self) -> None:
        """Run group after group until nothing waits."""
        loop = asyncio.get_running_loop()
        while batch := self._take():
            self.sizes[len(batch)] += 1
            items = [waiting.item for waiting in batch]
            start = time.perf_counter()
            try:
                results: Sequence[Any] = await loop.run_in_executor(
                    self._threads, self._run, batch[0].key, items
                )
            except Exception as error:
                results = [error] * len(batch)
            self.seconds += time.perf_counter() - start
            for waiting, result in zip(batch, results, strict=True):
                if waiting.future.done():  # its client has left
                    continue
                if isinstance(result, Exception):
                    waiting.future.set_exception(result)
                else:
                    waiting.future.set_result(result)
        # Not in a callback of the task: a client may submit again before that runs.
        self._num_running -= 1

    def _take(self) -> list[_Waiting]:
        """The oldest item and those of its key that fit beside it; the rest keeps its order."""
        batch: list[_Waiting] = []
        left: deque[_Waiting] = deque()
        rows, now = 0, time.monotonic()
        for waiting in self._waiting:
            if waiting.future.done():
                continue
            if waiting.deadline <= now:
                waiting.future.set_exception(ExpiredError())
            elif not batch or (
                waiting.key == batch[0].key and rows + waiting.rows <= self._max_rows
            ):
                batch.append(waiting)
                rows += waiting.rows
            else:
                left.append(waiting)
        self._waiting = left
        return batch
