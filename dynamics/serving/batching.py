"""Batching: requests that wait at the same time go through the model together.

A batch never waits to fill up: it takes the requests that wait when it begins, and asks for those
that came since, which join it. So a single request starts at once, and batches grow with the load.
"""

import asyncio
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
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

    def settle(self, result: Any) -> None:
        """Tell the client, in the event loop's thread, from any other one."""
        self.future.get_loop().call_soon_threadsafe(self._settle, result)

    def _settle(self, result: Any) -> None:
        if self.future.done():  # its client has left
            return
        if isinstance(result, Exception):
            self.future.set_exception(result)
        else:
            self.future.set_result(result)


Run = Callable[[Any, Sequence[Any], Callable[[], list[Any]]], Iterable[Any]]
"""A key, its items, and a function to items that join them, which may be called until none runs;
to a result an item in their order, where an exception stands for one item's failure."""


class Batcher:
    """Groups submitted items by key and runs the groups in threads of its own.

    Args:
        run: Computes a group, in a thread.
        max_rows: Most rows of a group; one item may exceed it alone.
        num_threads: Groups that run at the same time.
    """

    def __init__(self, run: Run, *, max_rows: int, num_threads: int = 1) -> None:
        self._run = run
        self._max_rows = max_rows
        self._num_threads = num_threads
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="batch")
        self._waiting: deque[_Waiting] = deque()
        self._lock = threading.Lock()  # of what waits and of the figures
        self._num_running = 0
        self._workers: set[asyncio.Task[None]] = set()  # the loop itself holds tasks only weakly
        self.sizes: Counter[int] = Counter()
        """Histogram: items that run together, counted when a batch begins and when some join."""
        self.seconds = 0.0
        """Wall time of all batches, added up."""

    @property
    def depth(self) -> int:
        """Items that wait."""
        with self._lock:
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
        with self._lock:
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
        try:
            while batch := self._take():
                await loop.run_in_executor(self._threads, self._compute, batch[0].key, deque(batch))
        finally:  # its loop may end with the last reply, which comes before this thread is done
            # Not in a callback of the task: a client may submit again before that runs.
            self._num_running -= 1

    def _compute(self, key: Hashable, running: deque[_Waiting]) -> None:
        """Run a group and those that join it; its thread."""
        start = time.perf_counter()

        def more() -> list[Any]:
            new = self._take(key, running)
            running.extend(new)
            return [waiting.item for waiting in new]

        try:
            items = [waiting.item for waiting in running]
            for result in self._run(key, items, more):
                running.popleft().settle(result)
                start = self._spent(start)
            assert not running, "fewer results than items"
        except Exception as error:
            for waiting in running:
                waiting.settle(error)
        self._spent(start)

    def _spent(self, start: float) -> float:
        now = time.perf_counter()
        with self._lock:
            self.seconds += now - start
        return now

    def _take(
        self, key: Hashable = None, running: Collection[_Waiting] | None = None
    ) -> list[_Waiting]:
        """The oldest item and those of its key that fit beside it; the rest keeps its order.

        Beside what is ``running`` only items of its key, none of which overtakes another item.
        """
        joins = running is not None
        if joins and not self._waiting:  # most steps of a batch
            return []
        batch: list[_Waiting] = []
        left: deque[_Waiting] = deque()
        rows, now = sum(waiting.rows for waiting in running or ()), time.monotonic()
        with self._lock:
            for waiting in self._waiting:
                if waiting.future.done():
                    continue
                if waiting.deadline <= now:
                    waiting.settle(ExpiredError())
                    continue
                key = key if batch or joins else waiting.key
                fits = rows + waiting.rows <= self._max_rows or not rows
                if waiting.key == key and fits and not (joins and left):
                    batch.append(waiting)
                    rows += waiting.rows
                else:
                    left.append(waiting)
            self._waiting = left
            if batch:
                self.sizes[len(running or ()) + len(batch)] += 1
        return batch
