"""Cheap refusals under overload: what the service has just refused is refused again at the door.

Handing a request to the service costs Serve's proxy and an HTTP replica about 4 ms each, refusing
it here a tenth of that. Under ten times the load that is possible, refusals alone would otherwise
take all of the machine.
"""

import time

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dynamics.serving.answers import refusal

HOLD_S = 0.05
"""How long a refusal holds. The queue behind it lasts longer, so the models never run dry."""


class Breaker:
    """ASGI middleware of the proxy: after a 503 with Retry-After, refuse all POSTs for `HOLD_S`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._until = 0.0
        body = refusal(503, "too many requests are waiting; ask again later").body.encode()
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
        """Refuse, or pass on and watch the answer."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        if time.monotonic() < self._until:
            await send(self._start)
            await send(self._body)
            return

        async def watched(message: Message) -> None:
            refused = message["type"] == "http.response.start" and message["status"] == 503
            if refused and any(name == b"retry-after" for name, _ in message["headers"]):
                self._until = time.monotonic() + HOLD_S
            await send(message)

        await self._app(scope, receive, watched)


def middlewares() -> list[Middleware]:
    """For Serve, which calls it by its import path when a proxy starts."""
    return [Middleware(Breaker)]
