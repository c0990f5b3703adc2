"""Limits and a second try where requests arrive: in Serve's proxy, or before the application.

Passing a request on costs the proxy and an HTTP replica about 4 ms each; refusing it here costs a
tenth of that. At ten times the capacity, refusals in the replicas would take the whole machine.
"""

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dynamics.serving.http.responses import error_response
from dynamics.serving.schemas import MAX_BODY_BYTES

MAX_OPEN = b"x-max-open"
"""Response header: most POSTs that may be open at a time. It is not passed on to clients."""
MAX_WORK_BYTES = 2 * MAX_BODY_BYTES
"""Most bytes of all requests that are open at a time."""
_SERVES_OWN = (b"x-request-timeout-seconds", b"x-request-disconnect-disabled")
"""Headers by which Serve's proxy lets a client switch its bounds off."""
_BUSY = "too many requests are waiting; ask again later"


class ProxyLimit:
    """ASGI middleware that refuses requests beyond bounds on their number and their bytes.

    A request of ours that dies with its replica is passed on once more, since equal requests with
    equal seeds get equal answers; Serve itself would answer it with a bare 500.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.max_open: int | None = None
        """Most POSTs that may be open, as the service last said."""
        self.open = 0
        """POSTs that have arrived and are not answered."""
        self.bytes = 0
        """Bytes of the requests that are not answered."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or pass it on and read the limit in its response."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        post = scope["method"] == "POST"
        request = _Request(self, receive, send, counts=post)
        if post and self.max_open is not None and self.open >= self.max_open:
            await request.refuse(503, _BUSY)
            return
        headers = [pair for pair in scope["headers"] if pair[0] not in _SERVES_OWN]
        ours = scope["path"].startswith("/v1/")  # others' services may stand behind this proxy
        try:
            await self._app({**scope, "headers": headers}, request.receive, request.send)
            if ours and request.is_unanswered:
                request.rewind()
                await self._app({**scope, "headers": headers}, request.receive, request.send)
            if ours and request.is_unanswered:
                await request.refuse(503, "the replica that was to answer died; ask again later")
        finally:
            self.open -= request.counted
            self.bytes -= request.bytes


class _Request:
    """A request that is passed on, until it breaks a bound."""

    def __init__(self, limit: ProxyLimit, receive: Receive, send: Send, *, counts: bool) -> None:
        self._limit = limit
        self._receive = receive
        self._send = send
        self._counts = counts
        self._arrived: list[Message] = []
        self._passed_on = 0
        self.is_unanswered = True
        """True until a reply begins, or the client leaves."""
        self._refused = False
        self.counted = False
        """True when it is one of the open POSTs."""
        self.bytes = 0
        """Bytes of its body so far."""

    async def receive(self) -> Message:
        """The next part of the body; for the application a refused client has left."""
        if self._refused:
            return {"type": "http.disconnect"}
        self._passed_on += 1
        if self._passed_on <= len(self._arrived):
            return self._arrived[self._passed_on - 1]
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.is_unanswered = False
        elif self.is_unanswered:
            self._arrived.append(message)
        size = len(message.get("body", b""))
        self.bytes += size
        self._limit.bytes += size
        if self.bytes > MAX_BODY_BYTES:
            return await self.refuse(413, f"the request is larger than {MAX_BODY_BYTES} bytes")
        if self._limit.bytes > MAX_WORK_BYTES:
            return await self.refuse(503, _BUSY)
        # A request counts once it has arrived: slow senders keep nobody out.
        if self._counts and not (self.counted or message.get("more_body", False)):
            self.counted = True
            self._limit.open += 1
        return message

    def rewind(self) -> None:
        """Have the application receive the request from its beginning."""
        self._passed_on = 0

    async def send(self, message: Message) -> None:
        """Pass a part of the response on, without the limit that it may carry."""
        if message["type"] == "http.response.start":
            headers = dict(message["headers"])
            if (max_open := headers.pop(MAX_OPEN, None)) is not None:
                self._limit.max_open = int(max_open)
                others = [pair for pair in message["headers"] if pair[0] != MAX_OPEN]
                message = {**message, "headers": others}
        if not self._refused:
            self.is_unanswered = False
            self._arrived.clear()
            await self._send(message)

    async def refuse(self, status: int, detail: str) -> Message:
        """Answer instead of the application, whose own response is dropped from now on."""
        self._refused = True
        self._limit.bytes -= self.bytes
        self.bytes = 0
        if self.is_unanswered:
            self.is_unanswered = False
            body = error_response(status, detail).body.encode()
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"x-content-type-options", b"nosniff"),
                *([(b"retry-after", b"1")] if status == 503 else []),
            ]
            start = {"type": "http.response.start", "status": status, "headers": headers}
            await self._send(start)
            await self._send({"type": "http.response.body", "body": body})
        return {"type": "http.disconnect"}


def middlewares() -> list[Middleware]:
    """The proxy's middlewares; Serve calls this by its import path when a proxy starts.

    Serve takes no class for its connections: the one that uvicorn finds by itself is exchanged, in
    the proxy's process alone.
    """
    from uvicorn.protocols.http import auto

    from dynamics.serving.http.server import BoundedProtocol

    auto.AutoHTTPProtocol = BoundedProtocol
    return [Middleware(ProxyLimit)]
