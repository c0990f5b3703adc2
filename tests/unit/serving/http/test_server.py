"""Clients that send or read too slowly, or too much, over real sockets."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager, suppress

import httpx
import pytest

from dynamics.core.config import REPOSITORY_ROOT, ServeConfig
from dynamics.serving.http import server
from dynamics.serving.http.app import make_app
from dynamics.serving.http.responses import Event, ServiceResponse
from dynamics.serving.schemas import MAX_BODY_BYTES
from tests.serving import free_port, png

PAGE = REPOSITORY_ROOT / "dynamics" / "serving" / "page"
PREDICT = {"image": png(), "action": "push it"}
ROLLOUT = json.dumps({"image": png(), "actions": ["push it"]})
PLACES = 3


class Talker:
    """Answers predictions at once; a roll-out is more than any client's buffers hold."""

    def __init__(self) -> None:
        self.open = 0

    async def predict(self, *_: object) -> ServiceResponse:
        return ServiceResponse(200, "{}")

    async def models(self) -> ServiceResponse:
        return ServiceResponse(200, "{}")

    async def rollout(self, *_: object) -> AsyncGenerator[Event, None]:
        self.open += 1
        try:
            while True:
                yield Event("step", "x" * 2**20)
                await asyncio.sleep(0)
        finally:
            self.open -= 1


@contextmanager
def served(talker: Talker) -> Iterator[int]:
    app = make_app(talker, ServeConfig(max_queued=PLACES), PAGE, None)  # type: ignore[arg-type]
    port = free_port()
    running = server.make_server(app, "127.0.0.1", port)
    thread = threading.Thread(target=running.run)
    thread.start()
    while not running.started:
        time.sleep(0.01)
    yield port
    running.should_exit = True
    thread.join(timeout=10)
    assert not thread.is_alive()


def connected(port: int, *parts: str) -> socket.socket:
    one = socket.create_connection(("127.0.0.1", port), timeout=5)
    one.sendall("\r\n".join(parts).encode())
    return one


def closed(one: socket.socket) -> bool:
    """True when the service ends the connection without a word."""
    with suppress(ConnectionResetError):
        return one.recv(1) == b""
    return True


def test_headers_that_do_not_come_end_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEADER_TIMEOUT_S", 0.5)
    with served(Talker()) as port:
        silent = [connected(port) for _ in range(100)]
        half = [connected(port, "GET /healthz HTTP/1.1", "X: y") for _ in range(100)]
        again = connected(port, "GET /healthz HTTP/1.1", "Host: localhost", "", "")
        assert again.recv(4096).startswith(b"HTTP/1.1 200")
        again.sendall(b"\r\n\r\n")
        begin = time.monotonic()
        assert httpx.post(f"http://127.0.0.1:{port}/v1/predict", json=PREDICT).status_code == 200
        assert all(map(closed, [*silent, *half, again]))
        assert time.monotonic() - begin < 3


def test_head_is_answered_like_get_without_a_body() -> None:
    request = ("HEAD /healthz HTTP/1.1", "Host: localhost", "Connection: close", "", "")
    with served(Talker()) as port, connected(port, *request) as one:
        reply = b"".join(iter(lambda: one.recv(4096), b""))
    assert reply.startswith(b"HTTP/1.1 200")
    assert reply.endswith(b"\r\n\r\n")


@pytest.mark.slow
def test_two_hundred_slow_clients_for_a_minute_slow_nobody_down() -> None:
    ended = threading.Event()

    def dribble(port: int) -> None:
        while not ended.is_set():
            with suppress(ConnectionError), connected(port, "GET /healthz HTTP/1.1", "") as one:
                while not ended.wait(1):
                    one.sendall(b"X: y\r\n")

    def slowest_ms(asker: httpx.Client, seconds: float) -> float:
        """The time that 99 % of requests stay below."""
        took, end = [], time.monotonic() + seconds
        while time.monotonic() < end:
            start = time.monotonic()
            assert asker.post("/v1/predict", json=PREDICT).status_code == 200
            took.append(1000 * (time.monotonic() - start))
            time.sleep(0.02)
        return sorted(took)[int(0.99 * len(took))]

    with served(Talker()) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}") as asker:
        before = slowest_ms(asker, 20)
        slow = [threading.Thread(target=dribble, args=(port,)) for _ in range(200)]
        for one in slow:
            one.start()
        meanwhile = slowest_ms(asker, 60)
        ended.set()
        for one in slow:
            one.join()
        after = slowest_ms(asker, 20)
    assert meanwhile <= 2 * max(before, after)


def test_roll_outs_that_nobody_reads_give_their_places_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "WRITE_TIMEOUT_S", 0.7)
    talker = Talker()
    request = (
        "POST /v1/rollouts HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(ROLLOUT)}",
        "",
        ROLLOUT,
    )
    with served(talker) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}") as asker:
        asker.post("/v1/predict", json=PREDICT)
        unread = [connected(port, *request) for _ in range(PLACES)]
        # On a busy machine the first ones end before the last one begins.
        while asker.post("/v1/predict", json=PREDICT).status_code != 503:
            unread.append(connected(port, *request))
            assert len(unread) < 100
        begin = time.monotonic()
        while asker.post("/v1/predict", json=PREDICT).status_code == 503:
            time.sleep(0.05)
        while talker.open:
            time.sleep(0.01)
        assert time.monotonic() - begin < 4
        for one in unread:
            one.close()


def test_an_endless_body_is_cut_at_the_cap() -> None:
    piece = b"%x\r\n" % 2**16 + b"x" * 2**16 + b"\r\n"
    with served(Talker()) as port:
        one = connected(
            port,
            "POST /v1/predict HTTP/1.1",
            "Host: localhost",
            "Content-Type: application/json",
            "Transfer-Encoding: chunked",
            "",
            "",
        )
        sent = 0
        with suppress(ConnectionError):
            while sent < 2**30:
                one.sendall(piece)
                sent += len(piece)
        # What the system's own buffers took on both sides counts as sent.
        assert sent < MAX_BODY_BYTES + 2**24
        assert one.recv(4096).startswith(b"HTTP/1.1 413")


def test_a_body_that_a_refusal_did_not_wait_for_is_not_read() -> None:
    with served(Talker()) as port:
        one = connected(
            port, "POST /v1/predict HTTP/1.1", "Host: evil.example", "Content-Length: 99", "", "x"
        )
        assert one.recv(4096).startswith(b"HTTP/1.1 403")
        assert closed(one)
