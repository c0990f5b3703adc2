"""A proxy that breaks a share of the requests, in front of an HTTP server such as a store."""

import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_ERRORS = 0.2
_RESETS = 0.05
_HOP_BY_HOP = {"connection", "transfer-encoding", "keep-alive"}
_SMALLEST_LINGER = struct.pack("ii", 1, 0)  # close() then sends a reset


class FaultyProxy(ThreadingHTTPServer):
    """Answers 20 % of requests with 500 or 503 and resets 5 % of connections.

    Half of the faults strike before the request arrives, half after it was carried out, so that
    a client that repeats it finds its own first try done.

    Args:
        to: URL of the server behind it.
    """

    daemon_threads = True

    def __init__(self, to: str, seed: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind = urlsplit(to).netloc
        self.counts: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}"

    def draw(self) -> tuple[str, bool]:
        """The next request's fate, "ok", "500", "503" or "reset", and whether it arrives."""
        with self._lock:
            chance, arrives = self._random.random(), self._random.random() < 0.5
            error = self._random.choice(("500", "503"))
            fate = "reset" if chance < _RESETS else error if chance < _RESETS + _ERRORS else "ok"
            self.counts[fate] += 1
        return fate, arrives or fate == "ok"

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing about clients that hang up."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyProxy

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fate, arrives = self.server.draw()
        status, headers, reply = self._forward(body) if arrives else (0, [], b"")
        if fate == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _SMALLEST_LINGER)
            self.close_connection = True
            self.connection.close()
            return
        if fate != "ok":
            status, headers, reply = int(fate), [("Content-Length", "0")], b""
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(reply)

    def __getattr__(self, name: str) -> Callable[[], None]:
        if name.startswith("do_"):  # a handler has a method for every verb
            return self._answer
        raise AttributeError(name)

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = HTTPConnection(self.server.behind, timeout=60)
        connection.request(self.command, self.path, body, dict(self.headers))
        answer = connection.getresponse()
        reply = answer.read()
        connection.close()
        headers = [item for item in answer.getheaders() if item[0].lower() not in _HOP_BY_HOP]
        if not any(name.lower() == "content-length" for name, _ in headers):
            headers.append(("Content-Length", str(len(reply))))
        return answer.status, headers, reply


@contextmanager
def faulty_proxy(to: str, seed: int = 0) -> Iterator[FaultyProxy]:
    """The proxy while the body runs."""
    with FaultyProxy(to, seed) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
