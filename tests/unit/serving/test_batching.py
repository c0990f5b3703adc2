import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from dynamics.serving.batching import Batcher, ExpiredError


class Slow:
    """Doubles numbers, one batch after the other, and remembers the batches."""

    def __init__(self, seconds: float = 0.02) -> None:
        self.batches: list[tuple[Any, list[Any]]] = []
        self.seconds = seconds

    def __call__(self, key: Any, items: Sequence[Any], more: Any) -> list[Any]:
        time.sleep(self.seconds)
        self.batches.append((key, list(items)))
        return [ValueError(item) if item < 0 else 2 * item for item in items]


def soon() -> float:
    return time.monotonic() + 10


def submit(batcher: Batcher, item: int, key: str = "a", rows: int = 1) -> Any:
    return batcher.submit(key, item, rows=rows, deadline=soon())


def run(*items: tuple[int, str, int], max_rows: int = 8) -> tuple[list[Any], Slow]:
    work = Slow()

    async def main() -> list[Any]:
        batcher = Batcher(work, max_rows=max_rows)
        waiting = [submit(batcher, item, key, rows) for item, key, rows in items]
        return await asyncio.gather(*waiting, return_exceptions=True)

    return asyncio.run(main()), work


def test_what_waits_together_runs_together() -> None:
    results, work = run(*[(n, "a", 1) for n in range(5)])
    assert results == [0, 2, 4, 6, 8]
    assert [len(items) for _, items in work.batches] == [5]


def test_only_equal_keys_share_a_batch_and_the_oldest_goes_first() -> None:
    _, work = run((0, "a", 1), (1, "b", 1), (2, "a", 1), (3, "c", 1))
    assert work.batches == [("a", [0, 2]), ("b", [1]), ("c", [3])]


def test_a_batch_keeps_its_limit_and_a_large_item_goes_alone() -> None:
    _, work = run((0, "a", 5), (1, "a", 5), (2, "a", 3), (3, "a", 20))
    assert [items for _, items in work.batches] == [[0, 2], [1], [3]]


def test_one_bad_item_fails_alone() -> None:
    results, _ = run((1, "a", 1), (-1, "a", 1), (3, "a", 1))
    assert results[0::2] == [2, 6]
    assert isinstance(results[1], ValueError)


def test_a_fault_of_the_model_is_told_to_all_and_the_next_batch_runs() -> None:
    def fail_once(key: str, items: Sequence[int], more: Any) -> list[int]:
        if 1 in items:
            raise RuntimeError("out of memory")
        return list(items)

    async def main() -> None:
        batcher = Batcher(fail_once, max_rows=8)
        both = await asyncio.gather(submit(batcher, 1), submit(batcher, 2), return_exceptions=True)
        assert [str(error) for error in both] == ["out of memory"] * 2
        assert await submit(batcher, 3) == 3

    asyncio.run(main())


def test_whoever_was_just_answered_may_ask_again() -> None:
    async def main() -> None:
        batcher = Batcher(Slow(0), max_rows=8)
        async with asyncio.timeout(5):
            for number in range(100):
                assert await submit(batcher, number) == 2 * number

    asyncio.run(main())


def test_a_loop_that_ends_with_its_last_answer_leaves_the_batcher_free_for_the_next() -> None:
    def lingers(key: Any, items: Sequence[Any], more: Any) -> Iterator[int]:
        yield from items
        time.sleep(0.1)

    batcher = Batcher(lingers, max_rows=8)
    for number in range(2):
        asyncio.run(asyncio.wait_for(submit(batcher, number), 5))


def test_an_expired_item_is_never_computed() -> None:
    work = Slow()

    async def main() -> None:
        batcher = Batcher(work, max_rows=1)
        first = asyncio.create_task(submit(batcher, 1))
        await asyncio.sleep(0)
        with pytest.raises(ExpiredError):
            await batcher.submit("a", 2, rows=1, deadline=time.monotonic() + 0.001)
        assert await first == 2

    asyncio.run(main())
    assert work.batches == [("a", [1])]


def test_a_client_that_left_is_never_computed() -> None:
    work = Slow()

    async def main() -> None:
        batcher = Batcher(work, max_rows=1)
        first = asyncio.create_task(submit(batcher, 1))
        second = asyncio.create_task(submit(batcher, 2))
        await asyncio.sleep(0.005)
        second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        assert batcher.depth == 0
        assert await submit(batcher, 3) == 6

    asyncio.run(main())
    assert [items for _, items in work.batches] == [[1], [3]]


def test_two_threads_run_two_batches_at_a_time() -> None:
    async def main() -> float:
        batcher = Batcher(Slow(0.2), max_rows=1, num_threads=2)
        start = time.monotonic()
        await asyncio.gather(*[submit(batcher, n) for n in range(4)])
        return time.monotonic() - start

    assert asyncio.run(main()) < 0.7


class Joining:
    """Gives results once so many have joined, or nothing does for a while."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.joined: list[list[Any]] = []

    def __call__(
        self, key: Any, items: Sequence[Any], more: Callable[[], list[Any]]
    ) -> Iterator[Any]:
        running, end = list(items), time.monotonic() + 0.2
        while len(running) < self.wanted and time.monotonic() < end:
            if new := more():
                self.joined.append(new)
                running += new
            time.sleep(0.001)
        yield from running


def join(*later: tuple[int, str, int], max_rows: int = 8, wanted: int) -> tuple[list[Any], Joining]:
    """An item that runs, and others that come while it does."""
    work = Joining(wanted)

    async def main() -> list[Any]:
        batcher = Batcher(work, max_rows=max_rows)
        first = asyncio.create_task(submit(batcher, 0, "a", 2))
        await asyncio.sleep(0.02)
        assert batcher.depth == 0
        others = [submit(batcher, item, key, rows) for item, key, rows in later]
        return await asyncio.gather(first, *others)

    return asyncio.run(main()), work


def test_what_comes_while_a_batch_runs_joins_it() -> None:
    results, work = join((1, "a", 2), (2, "a", 2), wanted=3)
    assert results == [0, 1, 2]
    assert [item for new in work.joined for item in new] == [1, 2]


def test_nothing_that_waits_is_overtaken_by_what_joins() -> None:
    results, work = join((1, "a", 1), (2, "b", 1), (3, "a", 1), wanted=4)
    assert results == [0, 1, 2, 3]
    assert work.joined == [[1]]
    results, work = join((1, "a", 7), (2, "a", 1), wanted=3)
    assert results == [0, 1, 2]
    assert work.joined == []


def test_an_empty_batch_that_asks_on_gets_nothing_of_another_key() -> None:
    def work(key: Any, items: Sequence[Any], more: Callable[[], list[Any]]) -> Iterator[Any]:
        yield from [(key, item) for item in items]
        time.sleep(0.02)
        while new := more():
            yield from [(key, item) for item in new]

    async def main() -> list[Any]:
        batcher = Batcher(work, max_rows=8)
        return await asyncio.gather(*[submit(batcher, n, "ab"[n % 2]) for n in range(6)])

    assert asyncio.run(main()) == [("ab"[n % 2], n) for n in range(6)]
