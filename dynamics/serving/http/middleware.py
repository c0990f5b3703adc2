"""ASGI middleware around the whole application: every request and reply passes through it.

It checks the API key, the host and the body's size, adds security headers, counts requests, and
turns an unexpected exception into status 500.
"""

import hmac
import logging
import time
from collections.abc import Iterable, Sequence

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dynamics.core.loopback import is_loopback
from dynamics.serving.http.metrics import HttpMetrics
from dynamics.serving.http.proxy_limit import MAX_OPEN
from dynamics.serving.schemas import MAX_BODY_BYTES, ErrorReply

_log = logging.getLogger(__name__)

PROTECTED = ("/v1/", "/metrics")
"""Paths that need the key, and that no page of another origin may ask; the page, the description of
the API and health are open."""
BODY_KINDS = ("application/json", "multipart/form-data")
"""Content types of requests. A form of another site cannot send the first without being asked."""

SECURITY_HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; "
        b"form-action 'self'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


class Refused(Exception):  # noqa: N818  an outcome, not a fault
    """Ends a request before any route has answered."""

    def __init__(self, status: int, detail: str, retry_after_s: int | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.retry_after_s = retry_after_s


class BodyTooLargeError(Exception):
    """The body is longer than the limit; raised where it is read."""


class ServiceMiddleware:
    """ASGI middleware around the whole application.

    Args:
        app: The application.
        key: API key that clients must present; none = only loopback addresses are served.
        metrics: Counts requests.
        max_open: Most POSTs that may be open at a time over all HTTP replicas, for `ProxyLimit`.
    """

    def __init__(
        self, app: ASGIApp, *, key: str | None, metrics: HttpMetrics, max_open: int
    ) -> None:
        self._app = app
        self._key = key
        self._metrics = metrics
        self._headers = (*SECURITY_HEADERS, (MAX_OPEN, str(max_open).encode()))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # a copy: the server knows by its own to send no body
            scope = {**scope, "method": "GET"}
        reply = _Reply(send, self._headers)
        start = time.perf_counter()
        self._metrics.begin()
        try:
            self._check(scope)
            await self._app(scope, _limited(receive), reply)
        except Refused as refused:
            await reply.refuse(refused)
        except BodyTooLargeError:
            await reply.refuse(Refused(413, f"the request is larger than {MAX_BODY_BYTES} bytes"))
        except ClientDisconnect:
            pass
        except Exception:
            request_id = header(scope, b"x-request-id") or "unknown"
            _log.exception("request %s failed", request_id)
            detail = f"internal error, see the log; request id {request_id}"
            await reply.refuse(Refused(500, detail))
        finally:
            self._metrics.end(_route(scope), reply.status, time.perf_counter() - start)

    def _check(self, scope: Scope) -> None:
        length = header(scope, b"content-length")
        if length and length.isdigit() and int(length) > MAX_BODY_BYTES:
            raise BodyTooLargeError
        if self._key is None:
            _only_this_machine(scope)
        protected = scope["path"].startswith(PROTECTED)
        if protected:
            _only_own_page(scope)
        if protected and self._key is not None:
            scheme, _, given = (header(scope, b"authorization") or "").partition(" ")
            right = hmac.compare_digest(given.encode(), self._key.encode())
            if not right or scheme.lower() != "bearer":
                raise Refused(401, "a key is needed: send Authorization: Bearer KEY")
        if scope["method"] == "POST" and media_type(scope) not in BODY_KINDS:
            raise Refused(415, f"send the request as {' or '.join(BODY_KINDS)}")


class _Reply:
    """Passes the reply on with the security headers, and remembers its status."""

    def __init__(self, send: Send, headers: Sequence[tuple[bytes, bytes]]) -> None:
        self._send = send
        self._headers = headers
        self.status = 0
        """HTTP status; 0 before anything was sent."""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message.get("headers", ()), *self._headers]}
        await self._send(message)

    async def refuse(self, refused: Refused) -> None:
        """Answer with an `ErrorReply`, unless an answer is on its way: then it is cut short."""
        if self.status:
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        body = ErrorReply(detail=refused.detail).model_dump_json().encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ]
        if refused.retry_after_s is not None:
            headers.append((b"retry-after", str(refused.retry_after_s).encode()))
        if refused.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        await self({"type": "http.response.start", "status": refused.status, "headers": headers})
        await self({"type": "http.response.body", "body": body})


def _limited(receive: Receive) -> Receive:
    """Count received bytes and refuse too many, whatever the request announced."""
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > MAX_BODY_BYTES:
            raise BodyTooLargeError
        return message

    return counted


def _only_this_machine(scope: Scope) -> None:
    """Refuse other machines, and web pages whose host name was made to point here."""
    server = scope.get("server")
    if server is not None and not is_loopback(server[0]):
        raise Refused(
            403,
            "this service has no API key and answers on loopback addresses only; set "
            "serve.api_key_env or serve.api_key_file",
        )
    host = header(scope, b"host") or ""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    if name and not is_loopback(name.strip("[]")):
        raise Refused(403, "without an API key only requests to localhost are answered")


def _only_own_page(scope: Scope) -> None:
    """Refuse what a page of another origin sends; programs send neither of the headers."""
    site = header(scope, b"sec-fetch-site") or "none"
    origin = header(scope, b"origin")
    own = origin is None or origin.partition("://")[2] == header(scope, b"host")
    if site not in ("same-origin", "none") or not own:
        raise Refused(403, "a page of another origin may not ask this service")


def media_type(scope: Scope) -> str:
    """Content type of the request without its parameters."""
    return (header(scope, b"content-type") or "").partition(";")[0].strip().lower()


def header(scope: Scope, name: bytes) -> str | None:
    """The first header of a lower-case name."""
    headers: Iterable[tuple[bytes, bytes]] = scope["headers"]
    for key, value in headers:
        if key == name:
            return value.decode("latin-1")
    return None


def _route(scope: Scope) -> str:
    """The route's template; unknown paths share one name, so that nobody can invent series."""
    route = scope.get("route")
    return str(getattr(route, "path", "other"))


def sse(name: str, body: str) -> bytes:
    """One server-sent event; JSON has no raw line ends."""
    return f"event: {name}\ndata: {body}\n\n".encode()
