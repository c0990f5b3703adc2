import asyncio
from collections.abc import AsyncIterator

import httpx
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from dynamics.serving.http.proxy_limit import MAX_OPEN, ProxyLimit, middlewares


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


def test_serve_finds_it_by_the_path_that_the_runtime_names() -> None:
    assert [middleware.cls for middleware in middlewares()] == [ProxyLimit]
