import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
import uvicorn
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http import auto

from dynamics.serving.http import proxy_limit
from dynamics.serving.http.proxy_limit import MAX_OPEN, ProxyLimit, middlewares
from dynamics.serving.http.server import BoundedProtocol


class App:
    """Answers after a while, two requests at a time; counts what reaches it."""

    def __init__(self) -> None:
        self.reached = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.reached += 1
        while (await receive()).get("more_body"):
            pass
        await asyncio.sleep(0.05)
        await JSONResponse({}, 200, {MAX_OPEN.decode(): "2"})(scope, receive, send)


def test_beyond_the_limit_that_the_service_named_nothing_reaches_it() -> None:
    app = App()

    async def main() -> None:
        transport = httpx.ASGITransport(ProxyLimit(app))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as asker:
            first = await asker.post("/v1/predict")
            assert MAX_OPEN.decode() not in first.headers
            assert MAX_OPEN.decode() not in (await asker.get("/")).headers
            reached = app.reached
            asked = [asker.post("/v1/predict") for _ in range(6)]
            *replies, health = await asyncio.gather(*asked, asker.get("/healthz"))
            assert sorted(reply.status_code for reply in replies) == [200] * 2 + [503] * 4
            assert (health.status_code, app.reached) == (200, reached + 3)
            refused = next(reply for reply in replies if reply.status_code == 503)
            assert refused.headers["retry-after"] == "1"
            assert "ask again later" in refused.json()["detail"]
            assert (await asker.post("/v1/predict")).status_code == 200

    asyncio.run(main())


def test_who_sends_slowly_keeps_nobody_out() -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(0.2)
        yield b"}"

    async def main() -> None:
        transport = httpx.ASGITransport(ProxyLimit(App()))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as asker:
            await asker.post("/v1/predict")
            slowly = [asyncio.create_task(asker.post("/", content=slow())) for _ in range(2)]
            await asyncio.sleep(0.05)
            assert (await asker.post("/v1/predict")).status_code == 200
            assert [reply.status_code for reply in await asyncio.gather(*slowly)] == [200, 200]

    asyncio.run(main())


def test_requests_of_more_bytes_than_are_worked_on_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(proxy_limit, "MAX_BODY_BYTES", 600)
    monkeypatch.setattr(proxy_limit, "MAX_WORK_BYTES", 1000)

    async def main() -> None:
        limit = ProxyLimit(App())
        transport = httpx.ASGITransport(limit)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as asker:
            asked = [asker.post("/", content=b"x" * 400) for _ in range(4)]
            replies = await asyncio.gather(*asked, asker.get("/"))
            assert sorted(reply.status_code for reply in replies) == [200, 200, 200, 503, 503]
            assert (await asker.post("/", content=b"x" * 601)).status_code == 413
            assert (await asker.post("/", content=b"x" * 600)).status_code == 200
        assert (limit.open, limit.bytes) == (0, 0)

    asyncio.run(main())


def test_no_client_switches_the_bounds_of_the_proxy_off() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(dict(scope["headers"]))
        await JSONResponse({})(scope, receive, send)

    seen: list[dict[bytes, bytes]] = []

    async def main() -> None:
        transport = httpx.ASGITransport(ProxyLimit(app))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as asker:
            off = {"X-Request-Timeout-Seconds": "0", "X-Request-Disconnect-Disabled": "?1"}
            await asker.post("/", headers=off | {"x-other": "1"})

    asyncio.run(main())
    assert b"x-other" in seen[0]
    assert not any(name.startswith(b"x-request-") for name in seen[0])


@pytest.mark.parametrize(
    ("path", "deaths", "status", "tries"),
    [("/v1/predict", 1, 200, 2), ("/v1/predict", 2, 503, 2), ("/others/order", 1, None, 1)],
)
def test_a_request_that_dies_with_its_replica_is_passed_on_once_more(
    path: str, deaths: int, status: int | None, tries: int
) -> None:
    seen: list[bytes] = []
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        while (message := await receive()).get("more_body"):
            body += message["body"]
        seen.append(body + message["body"])
        if len(seen) > deaths:  # else it ends without a word, as Serve's proxy does
            await JSONResponse({})(scope, receive, send)

    parts = iter([(b"a", True), (b"b", True), (b"c", False)])

    async def receive() -> Message:
        body, more = next(parts)
        return {"type": "http.request", "body": body, "more_body": more}

    async def send(message: Message) -> None:
        sent.append(message)

    limit = ProxyLimit(app)
    scope = {"type": "http", "method": "POST", "path": path, "headers": []}
    asyncio.run(limit(scope, receive, send))
    assert seen == [b"abc"] * tries
    assert (sent[0]["status"] if sent else None) == status
    assert (limit.open, limit.bytes) == (0, 0)


def test_serve_finds_it_by_the_path_that_the_runtime_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "AutoHTTPProtocol", None)
    assert [middleware.cls for middleware in middlewares()] == [ProxyLimit]
    assert auto.AutoHTTPProtocol is BoundedProtocol
    config = uvicorn.Config(App())
    config.load()
    assert config.http_protocol_class is BoundedProtocol
