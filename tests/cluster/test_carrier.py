"""The carrier of predictions from the HTTP replica to the generator, without Ray."""

import asyncio
from collections.abc import Sequence

import pytest

from dynamics.serving.http.responses import ServiceResponse

Requests = Sequence[tuple[bytes, float]]


class Generator:
    """Echoes bodies after a while, and dies when it is told to."""

    def __init__(self, deaths: int = 0) -> None:
        self.calls: list[list[bytes]] = []
        self.deaths = deaths

    async def __call__(self, requests: Requests) -> list[tuple[int, str]]:
        self.calls.append([body for body, _ in requests])
        await asyncio.sleep(0.01)
        if self.deaths:
            from ray.exceptions import RayActorError

            self.deaths -= 1
            raise RayActorError
        return [(200, body.decode()) for body, _ in requests]


def carried(
    generator: Generator, count: int, most: int = 4, calls: int = 1
) -> list[ServiceResponse]:
    async def main() -> list[ServiceResponse]:
        from ray_jobs.serving.backend import Carrier

        carrier = Carrier(generator, most=most, calls=calls)
        return await asyncio.gather(*[carrier.ask(str(n).encode(), 5.0) for n in range(count)])

    return asyncio.run(main())


def test_what_comes_alone_goes_at_once_and_what_waits_goes_together() -> None:
    generator = Generator()
    answers = carried(generator, 9)
    assert [int(answer.body) for answer in answers] == list(range(9))
    assert [len(call) for call in generator.calls] == [1, 4, 4]


def test_a_call_to_a_replica_that_dies_is_made_again() -> None:
    from ray_jobs.serving.backend import ATTEMPTS

    generator = Generator(deaths=ATTEMPTS - 1)
    assert [answer.status for answer in carried(generator, 3)] == [200, 200, 200]


def test_when_all_die_the_client_is_told_so() -> None:
    from ray_jobs.serving.backend import ATTEMPTS

    generator = Generator(deaths=ATTEMPTS)
    first, second = carried(generator, 2)
    assert first.status == 503
    assert "died" in first.body
    assert second.status == 200


def test_a_client_that_left_is_not_carried() -> None:
    generator = Generator()

    async def main() -> None:
        from ray_jobs.serving.backend import Carrier

        carrier = Carrier(generator, most=4, calls=1)
        tasks = [asyncio.create_task(carrier.ask(str(n).encode(), 5.0)) for n in range(3)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(main())
    assert generator.calls == [[b"0"], [b"2"]]


def test_a_fault_reaches_whoever_waits_and_frees_the_way() -> None:
    class Broken(Generator):
        async def __call__(self, requests: Requests) -> list[tuple[int, str]]:
            if requests[0][0] == b"0":
                raise RuntimeError("broken")
            return await super().__call__(requests)

    async def main() -> None:
        from ray_jobs.serving.backend import Carrier

        carrier = Carrier(Broken(), most=4, calls=1)
        with pytest.raises(RuntimeError, match="broken"):
            await carrier.ask(b"0", 5.0)
        assert (await carrier.ask(b"1", 5.0)).status == 200

    asyncio.run(main())
