"""An open-loop HTTP load generator that costs little: raw HTTP/1.1 over kept connections.

Open loop: requests leave at their times whether or not earlier ones were answered, so a slow server
cannot slow its clients down and hide its latency.
"""

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class Outcome:
    """One request: its start and duration in seconds, and its status."""

    sent_s: float
    took_s: float
    status: int
    """0 = no answer: the connection broke."""


@dataclass(slots=True)
class Client:
    """Connections to one server, reused; a request opens another one when all are busy."""

    host: str
    port: int
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=list)

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Status and body; status 0 when the connection breaks."""
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        try:
            reader, writer = (
                self.idle.pop()
                if self.idle
                else await asyncio.open_connection(self.host, self.port)
            )
            writer.write(head.encode() + body)
            status, reply, keep = await _read(reader)
        except (OSError, asyncio.IncompleteReadError, ValueError):
            return 0, b""
        if keep:
            self.idle.append((reader, writer))
        else:
            writer.close()
        return status, reply

    def close(self) -> None:
        """Close the idle connections."""
        while self.idle:
            self.idle.pop()[1].close()


async def _read(reader: asyncio.StreamReader) -> tuple[int, bytes, bool]:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    status = int(head[9:12])
    keep = b"connection: close" not in head
    if b"transfer-encoding: chunked" in head:
        body = b""
        while size := int(await reader.readline(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
        return status, body, keep
    length = int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
    return status, await reader.readexactly(length), keep


async def open_loop(
    client: Client,
    bodies: Sequence[bytes],
    *,
    rate: float,
    seconds: float,
    num_clients: int = 16,
    seed: int = 0,
    path: str = "/v1/predict",
) -> list[Outcome]:
    """``num_clients`` independent clients, each with Poisson arrivals, ``rate`` a second together.

    Returns when every request is answered or 20 s have passed since the last one left.
    """
    start = time.perf_counter()
    outcomes: list[Outcome] = []
    running: set[asyncio.Task[None]] = set()

    async def ask(body: bytes) -> None:
        sent = time.perf_counter()
        status, _ = await client.post(path, body)
        outcomes.append(Outcome(sent - start, time.perf_counter() - sent, status))

    async def arrive(number: int) -> None:
        rng = random.Random(f"{seed}-{number}")
        at = 0.0
        while (at := at + rng.expovariate(rate / num_clients)) < seconds:
            await asyncio.sleep(max(0.0, start + at - time.perf_counter()))
            task = asyncio.create_task(ask(rng.choice(bodies)))
            running.add(task)
            task.add_done_callback(running.discard)

    await asyncio.gather(*[arrive(number) for number in range(num_clients)])
    if running:
        await asyncio.wait(set(running), timeout=20)
    for task in set(running):
        task.cancel()
        outcomes.append(Outcome(seconds, 20.0, 0))
    return outcomes


def percentile(values: Sequence[float], share: float) -> float:
    """Percentile by nearest rank; NaN without values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")
