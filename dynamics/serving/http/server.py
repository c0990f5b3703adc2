"""uvicorn with bounds on what a client may leave unsent or unread.

uvicorn itself waits for a request's headers, and for a reader of its replies, as long as the client
likes; both would hold a connection, and the second a place among the open requests.
"""

import asyncio
import socket
from typing import cast

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from dynamics.core.config import ServeConfig
from dynamics.core.errors import UserError
from dynamics.core.loopback import is_loopback
from dynamics.serving.http.auth import read_key
from dynamics.serving.http.proxy_limit import ProxyLimit

HEADER_TIMEOUT_S = 10.0
"""Longest time that a client may take to send the headers of a request."""
WRITE_TIMEOUT_S = 10.0
"""Longest time, added up over a reply, that its client may let written bytes wait."""


class BoundedProtocol(HttpToolsProtocol):
    """A connection that is closed when its client is too slow."""

    _headers: asyncio.TimerHandle
    _write: asyncio.TimerHandle | None = None
    _write_left_s = 0.0
    _paused_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start to wait for the first request."""
        super().connection_made(cast(asyncio.Transport, transport))
        self._await_headers()

    def data_received(self, data: bytes) -> None:
        """Bytes of a request; the first one after a reply starts the wait for the next headers."""
        super().data_received(data)
        if self._headers.cancelled() and (self.cycle is None or self.cycle.response_complete):
            self._await_headers()

    def on_headers_complete(self) -> None:
        """A request begins."""
        self._headers.cancel()
        self._write_left_s = WRITE_TIMEOUT_S
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """A reply is written; a request that it did not wait for is not read to its end."""
        unread = self.cycle.more_body
        super().on_response_complete()
        if unread:
            self.transport.close()
        if self.transport.is_closing():  # what is still unsent may not wait for ever
            self.loop.call_later(WRITE_TIMEOUT_S, self.transport.abort)

    def timeout_keep_alive_handler(self) -> None:
        """Nothing was sent for a while, or nothing was read: both end here."""
        self.transport.abort()

    def pause_writing(self) -> None:
        """The client does not read as fast as is written."""
        super().pause_writing()
        self._paused_at = self.loop.time()
        self._write = self.loop.call_later(self._write_left_s, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has read."""
        super().resume_writing()
        self._write_left_s -= self.loop.time() - self._paused_at
        if self._write is not None:
            self._write.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        for timer in (self._headers, self._write):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def _await_headers(self) -> None:
        self._headers = self.loop.call_later(HEADER_TIMEOUT_S, self.transport.abort)


class UntilLeft:
    """ASGI middleware that cancels the work on a request whose client has left, as Serve does."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on until it is answered or its client leaves."""
        arrived: asyncio.Queue[Message] = asyncio.Queue()

        async def listen() -> None:
            message: Message = {"type": ""}
            while message["type"] != "http.disconnect":
                message = await receive()
                arrived.put_nowait(message)

        tasks = [
            asyncio.ensure_future(listen()),
            asyncio.ensure_future(self._app(scope, arrived.get, send)),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            task.result()


def make_server(app: ASGIApp, host: str, port: int) -> uvicorn.Server:
    """A server of the application, with the limits that Serve's proxy has."""
    return uvicorn.Server(
        uvicorn.Config(
            ProxyLimit(UntilLeft(app)),
            host=host,
            port=port,
            http=BoundedProtocol,
            ws="none",
            lifespan="off",
            log_level="critical",
            access_log=False,
            server_header=False,
        )
    )


def check_address(options: ServeConfig) -> None:
    """Refuse an address that cannot or must not be bound, before anything is started.

    Raises:
        UserError: not a loopback address and no API key, or the port is taken.
    """
    host = "127.0.0.1" if options.host == "localhost" else options.host
    if read_key(options) is None and not is_loopback(host):
        raise UserError(
            f"serve.host={options.host} is not a loopback address, and there is no API key; set "
            "serve.api_key_env or serve.api_key_file, or keep 127.0.0.1 and put an SSH tunnel "
            "before it"
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, options.port))
        except OSError as error:
            raise UserError(
                f"port {options.port} on {options.host} is in use; choose another one with "
                "serve.port=8001, or leave serving out with serve.enabled=false"
            ) from error


def url_of(options: ServeConfig) -> str:
    """Address of the service from this machine."""
    host = f"[{options.host}]" if ":" in options.host else options.host
    return f"http://{host}:{options.port}"
