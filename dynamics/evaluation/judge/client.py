"""One question to an OpenAI-compatible chat endpoint: retries, limits, a key that stays secret."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import httpx

from dynamics.core.errors import UserError
from dynamics.core.loopback import by_proxy
from dynamics.evaluation.judge.protocol import MAX_REPLY_TOKENS

_MAX_REPLY_BYTES = 1_000_000
_WRONG_SETTINGS = {401, 403, 404, 405}
"""Statuses that every further call would get, too."""
_MAX_WAIT_S = 60.0


class RefusedError(Exception):
    """The endpoint will not answer this question, whatever the number of attempts."""


class FailedError(Exception):
    """No answer after all attempts."""


class BudgetSpentError(Exception):
    """The budget leaves no further attempt."""


@dataclass(slots=True, kw_only=True)
class Budget:
    """Attempts that may still be made: each one may be billed, also those that fail."""

    left: int | None
    """None: no limit."""
    spent: int = 0

    def take(self) -> None:
        """Count an attempt.

        Raises:
            BudgetSpentError: none is left.
        """
        if self.left == 0:
            raise BudgetSpentError
        self.left = None if self.left is None else self.left - 1
        self.spent += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Chat endpoint of the judge."""

    url: str
    """Base URL, e.g. ``https://host/v1``; ``/chat/completions`` is added."""
    model: str
    timeout_s: float = 120.0
    """Limit of one attempt."""
    max_attempts: int = 4
    first_wait_s: float = 1.0
    """Wait before the second attempt; doubles with each one, unless the server says how long."""

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            known = False
        if not known:
            raise UserError("--judge-url must look like https://host/v1")
        if parts.username or parts.password or parts.query:
            raise UserError("--judge-url must hold no credentials; use --judge-key-env for the key")


class ChatClient:
    """A connection to an endpoint; a context manager that closes it.

    Args:
        endpoint: where to ask.
        key: sent as bearer token; None or "" sends none. Never part of any message.
        budget: shared by all questions.
        sleep: waits between attempts.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        key: str | None,
        budget: Budget,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._endpoint = endpoint
        self._budget = budget
        self._sleep = sleep
        if key and not (key.isascii() and key.isprintable()):
            raise UserError("the judge's key holds characters that no key has; set it again")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # No redirects: they would carry pictures, and maybe the key, to somebody else.
        self._http = httpx.Client(
            headers=headers,
            timeout=endpoint.timeout_s,
            follow_redirects=False,
            trust_env=by_proxy(endpoint.url),
        )

    def __enter__(self) -> "ChatClient":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()

    def ask(self, messages: list[dict[str, Any]]) -> str:
        """The text of the reply.

        429, 5xx, time-outs and broken connections are tried again.

        Raises:
            RefusedError: another 4xx, a redirect, or a reply that is no chat completion.
            FailedError: no attempt was answered.
            BudgetSpentError: the budget ended before an answer came.
            UserError: wrong URL, key or model: no question would be answered.
        """
        wait_s, reason = self._endpoint.first_wait_s, ""
        for attempt in range(self._endpoint.max_attempts):
            if attempt:
                self._sleep(min(wait_s, _MAX_WAIT_S))
                wait_s = self._endpoint.first_wait_s * 2**attempt
            self._budget.take()
            try:
                status, headers, body = self._post(messages)
            except httpx.TimeoutException:
                reason = "timed out"
                continue
            except httpx.RequestError as error:
                reason = type(error).__name__
                continue
            if status == 429 or status >= 500:
                reason = f"status {status}"
                wait_s = _retry_after_s(headers, wait_s)
                continue
            return self._text(status, body)
        raise FailedError(reason)

    def _post(self, messages: list[dict[str, Any]]) -> tuple[int, httpx.Headers, bytes]:
        payload = {
            "model": self._endpoint.model,
            "messages": messages,
            "temperature": 0,
            "max_tokens": MAX_REPLY_TOKENS,
        }
        url = f"{self._endpoint.url.rstrip('/')}/chat/completions"
        body = bytearray()
        deadline = time.monotonic() + self._endpoint.timeout_s
        with self._http.stream("POST", url, json=payload) as response:
            for piece in response.iter_bytes():
                body += piece
                if len(body) > _MAX_REPLY_BYTES:
                    raise RefusedError(f"reply larger than {_MAX_REPLY_BYTES:,} bytes")
                # httpx' own limit is per read: a trickle would never end.
                if time.monotonic() > deadline:
                    raise httpx.ReadTimeout("the reply takes too long")
            return response.status_code, response.headers, bytes(body)

    def _text(self, status: int, body: bytes) -> str:
        if status in _WRONG_SETTINGS:
            raise UserError(
                f"the judge at {self._endpoint.url} answers {status}; check --judge-url, "
                "--judge-model and the key's environment variable"
            )
        if status != 200:
            raise RefusedError(f"status {status}")
        try:
            text = json.loads(body)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
            raise RefusedError("no chat completion") from error
        if not isinstance(text, str):
            raise RefusedError("no text in the reply")
        return text


def _retry_after_s(headers: httpx.Headers, otherwise: float) -> float:
    """The header's seconds; its date form is not worth a parser here."""
    try:
        return max(0.0, float(headers.get("Retry-After", "")))
    except ValueError:
        return otherwise
