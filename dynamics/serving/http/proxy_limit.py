"""Limit on open requests in Serve's proxy, where refusing one costs least.

Passing a request on costs the proxy and an HTTP replica about 4 ms each; refusing it here costs a
tenth of that. At ten times the capacity, refusals in the replicas would take the whole machine.
"""

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dynamics.serving.http.responses import error_response

MAX_OPEN = b"x-max-open"
"""Response header: most POSTs that may be open at a time. The proxy removes it."""


class ProxyLimit:
    """ASGI middleware of the proxy: refuses POSTs beyond the limit that the service last sent."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._max_open: int | None = None
        self._open = 0
        body = error_response(503, "too many requests are waiting; ask again later").body.encode()
        self._body: Message = {"type": "http.response.body", "body": body}
        self._start: Message = {
            "type": "http.response.start",
            "status": 503,
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"retry-after", b"1"),
                (b"x-content-type-options", b"nosniff"),
            ],
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or pass it on and read the limit in its response."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        if self._max_open is not None and self._open >= self._max_open:
            await send(self._start)
            await send(self._body)
            return

        counted = False

        async def counting() -> Message:
            nonlocal counted
            message = await receive()
            # A request counts once it has arrived: slow senders keep nobody out.
            if not (counted or message.get("more_body", False)):
                counted = True
                self._open += 1
            return message

        async def heard(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = dict(message["headers"])
                if (max_open := headers.pop(MAX_OPEN, None)) is not None:
                    self._max_open = int(max_open)
                    others = [pair for pair in message["headers"] if pair[0] != MAX_OPEN]
                    message = {**message, "headers": others}
            await send(message)

        try:
            await self._app(scope, counting, heard)
        finally:
            self._open -= counted


def middlewares() -> list[Middleware]:
    """The proxy's middlewares; Serve calls this by its import path when a proxy starts."""
    return [Middleware(ProxyLimit)]
