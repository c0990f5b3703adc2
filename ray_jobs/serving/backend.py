"""Backend of the HTTP layer in the generator's replicas; survives their deaths."""

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from ray.exceptions import RayActorError
from ray.serve.handle import DeploymentHandle

from dynamics.core.config import ServeConfig
from dynamics.serving.backend import ServiceStatus
from dynamics.serving.http.responses import Event, ServiceResponse, error_response
from ray_jobs.serving.generator import ATTEMPTS

_CALLS = 2
"""Calls per generator replica at a time: one is computed, one waits."""

_Waiting = tuple[bytes, float, "asyncio.Future[ServiceResponse]"]
"""A request: body, deadline on the clock of `time.monotonic`, response."""


class Carrier:
    """Sends predictions to the generator, those that wait at the same time in one call.

    A call costs a replica 3 ms beside its models, whether it holds one request or sixteen. A single
    request is sent at once.

    Args:
        call: Sends bodies with their remaining seconds; returns responses in the same order.
        most: Most requests in a call.
        calls: Most calls at a time.
    """

    def __init__(
        self,
        call: Callable[[list[tuple[bytes, float]]], Awaitable[list[tuple[int, str]]]],
        *,
        most: int,
        calls: int,
    ) -> None:
        self._call = call
        self._most = most
        self._free = calls
        self._waiting: deque[_Waiting] = deque()
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself holds tasks only weakly

    async def ask(self, body: bytes, timeout_s: float) -> ServiceResponse:
        """One prediction; cancelling the caller takes it out of the queue until it is sent."""
        future: asyncio.Future[ServiceResponse] = asyncio.get_running_loop().create_future()
        self._waiting.append((body, time.monotonic() + timeout_s, future))
        self._send()
        return await future

    def _send(self) -> None:
        while self._free and self._waiting:
            batch: list[_Waiting] = []
            while self._waiting and len(batch) < self._most:
                if not (waiting := self._waiting.popleft())[2].done():
                    batch.append(waiting)
            if batch:
                self._free -= 1
                task = asyncio.get_running_loop().create_task(self._deliver(batch))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _deliver(self, batch: list[_Waiting]) -> None:
        def call() -> Awaitable[list[tuple[int, str]]]:
            now = time.monotonic()
            return self._call([(body, deadline - now) for body, deadline, _ in batch])

        try:
            answers = await survive(call)
        except Exception as error:
            for _, _, future in batch:
                if not future.done():
                    future.set_exception(error)
        else:
            answers = answers or [_dead()] * len(batch)
            for (_, _, future), answer in zip(batch, answers, strict=True):
                if not future.done():
                    future.set_result(ServiceResponse(*answer))
        finally:
            self._free += 1
            self._send()


class RemoteBackend:
    """`dynamics.serving.backend.Backend` in the generator's replicas.

    A call to a replica that dies is repeated with another one; the client does not notice.
    """

    def __init__(self, generator: DeploymentHandle[Any], options: ServeConfig) -> None:
        self._generator = generator
        self._carrier = Carrier(
            lambda requests: generator.predict_all.remote(requests),
            most=max(1, options.batch_rows // options.num_samples),
            calls=_CALLS * (options.max_replicas or options.num_replicas),
        )
        self._streams: Any = generator.options(stream=True)  # calls return iterators

    async def predict(self, body: bytes, timeout_s: float) -> ServiceResponse:
        """As `Backend.predict`."""
        return await self._carrier.ask(body, timeout_s)

    async def label(self, body: bytes, timeout_s: float) -> ServiceResponse:
        """As `Backend.label`."""
        return await self._ask(lambda: self._generator.label.remote(body, timeout_s))

    async def score(self, body: bytes, timeout_s: float) -> ServiceResponse:
        """As `Backend.score`."""
        return await self._ask(lambda: self._generator.score.remote(body, timeout_s))

    async def look(self, body: bytes, timeout_s: float) -> ServiceResponse:
        """As `Backend.look`."""
        return await self._ask(lambda: self._generator.look.remote(body, timeout_s))

    async def words(self, body: bytes, timeout_s: float) -> ServiceResponse:
        """As `Backend.words`."""
        return await self._ask(lambda: self._generator.words.remote(body, timeout_s))

    async def models(self) -> ServiceResponse:
        """As `Backend.models`."""
        return await self._ask(lambda: self._generator.models.remote())

    async def scenes(self) -> ServiceResponse:
        """As `Backend.scenes`."""
        return await self._ask(lambda: self._generator.scenes.remote())

    async def rollout(self, body: bytes, timeout_s: float) -> AsyncGenerator[Event]:
        """As `Backend.rollout`; after a death, events that were sent are not repeated."""
        sent = 0
        for _ in range(ATTEMPTS):
            position = 0
            try:
                async for event in self._streams.rollout.remote(body, timeout_s):
                    position += 1
                    if position == 1 and event[0] == "start":
                        body = _of_round(body, event[1])
                    if position > sent:
                        sent = position
                        yield Event(*event)
                return
            except RayActorError:
                continue
        dead = _dead()
        yield Event("error", dead.body, dead.status)

    async def status(self) -> ServiceStatus:
        """Sums over the replicas; while they change rounds, the oldest promoted one."""
        replicas: list[ServiceStatus] = await self._generator.broadcast("status").results_async()
        rounds = [replica.promoted for replica in replicas if replica.promoted is not None]
        sizes: dict[int, int] = {}
        for replica in replicas:
            for size, count in replica.batch_sizes.items():
                sizes[size] = sizes.get(size, 0) + count
        return ServiceStatus(
            promoted=min(rounds) if rounds else None,
            refused=next((replica.refused for replica in replicas if replica.refused), None),
            waiting=sum(replica.waiting for replica in replicas),
            batch_sizes=sizes,
            batch_seconds=sum(replica.batch_seconds for replica in replicas),
        )

    @staticmethod
    async def _ask(call: Callable[[], Awaitable[Any]]) -> ServiceResponse:
        answer = await survive(call)
        return _dead() if answer is None else ServiceResponse(*answer)


async def survive(call: Callable[[], Awaitable[Any]]) -> Any:
    """The result of a call, repeated when the replica dies; None after `ATTEMPTS` deaths."""
    for _ in range(ATTEMPTS):
        try:
            return await call()
        except RayActorError:
            continue
    return None


def _of_round(body: bytes, start: str) -> bytes:
    """The request pinned to the round in its start event, also over a promotion."""
    return json.dumps(json.loads(body) | {"round": json.loads(start)["round"]}).encode()


def _dead() -> ServiceResponse:
    return error_response(503, "the replicas that were to answer died; ask again later")
