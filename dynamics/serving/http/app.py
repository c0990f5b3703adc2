"""The HTTP layer: routes, their description, server-sent events, the page."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response
from starlette.types import Receive, Scope, Send

from dynamics.core.config import ServeConfig
from dynamics.core.errors import UserError
from dynamics.serving.backend import Backend
from dynamics.serving.http.films import FILMS, film
from dynamics.serving.http.metrics import CONTENT_TYPE, HttpMetrics
from dynamics.serving.http.middleware import Refused, ServiceMiddleware, sse
from dynamics.serving.http.request_body import read
from dynamics.serving.http.responses import Event, ServiceResponse, error_response, to_response
from dynamics.serving.schemas import (
    AnimationRequest,
    ErrorReply,
    LabelReply,
    LabelRequest,
    LookReply,
    LookRequest,
    Message,
    ModelsReply,
    PredictReply,
    PredictRequest,
    RolloutEnd,
    RolloutRequest,
    RolloutStart,
    RolloutStepMessage,
    ScenesReply,
    ScoreReply,
    ScoreRequest,
    WordsReply,
    WordsRequest,
)

PAGE = Path(__file__).resolve().parents[1] / "page"
"""The web page's folder."""
RETRY_AFTER_S = 1
_log = logging.getLogger(__name__)
_JSON = "application/json"
_SSE_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
]
_EVENTS = {
    "start": RolloutStart.model_json_schema(),
    "step": RolloutStepMessage.model_json_schema(),
    "end": RolloutEnd.model_json_schema(),
    "error": ErrorReply.model_json_schema(),
}
_BINARY = {"type": "string", "format": "binary"}
_PAGE_KINDS = (".html", ".css", ".js")
_PAGE_PATHS = {"index.html": "/", "docs.html": "/docs"}

_ERRORS: dict[int | str, dict[str, Any]] = {
    401: {"model": ErrorReply, "description": "The service wants a key."},
    403: {"model": ErrorReply, "description": "Not from there: another site's page, or no key."},
    408: {"model": ErrorReply, "description": "The request arrived too slowly."},
    413: {"model": ErrorReply, "description": "Too many bytes or pixels."},
    415: {"model": ErrorReply, "description": "Neither JSON nor a form with files."},
    422: {"model": ErrorReply, "description": "Something in the request is not as it must be."},
    500: {"model": ErrorReply, "description": "A fault of the service; its log says more."},
    503: {"model": ErrorReply, "description": "Too busy, or not ready; Retry-After says when."},
}
_READ_ERRORS: dict[int | str, dict[str, Any]] = {
    status: _ERRORS[status] for status in (401, 403, 413, 500, 503)
}


def make_app(backend: Backend, options: ServeConfig, page: Path, key: str | None) -> FastAPI:
    """The application; ``page`` is the web page's folder, ``key`` what clients must present."""
    app = FastAPI(
        title="dynamics",
        description="What an action does to a picture: the best of N next frames, by the verifier.",
        docs_url=None,
        redoc_url=None,
    )
    metrics = HttpMetrics()
    replicas = options.ingress_replicas or options.max_replicas or options.num_replicas
    max_open = options.max_queued * replicas
    app.add_middleware(ServiceMiddleware, key=key, metrics=metrics, max_open=max_open)
    app.add_exception_handler(HTTPException, _http_error)
    _Posts(app, backend, options)
    _add_reads(app, backend, metrics)
    _add_page(app, page)
    return app


class _Posts:
    """The routes that need a model, with one limit on how many requests are open."""

    def __init__(self, app: FastAPI, backend: Backend, options: ServeConfig) -> None:
        self._backend = backend
        self._options = options
        self._open = 0
        app.post(
            "/v1/predict",
            response_model=PredictReply,
            responses=_ERRORS,
            openapi_extra=_body(PredictRequest, ("image",)),
        )(self.predict)
        app.post(
            "/v1/label",
            response_model=LabelReply,
            responses=_ERRORS,
            openapi_extra=_body(LabelRequest, ("before", "after")),
        )(self.label)
        app.post(
            "/v1/score",
            response_model=ScoreReply,
            responses=_ERRORS,
            openapi_extra=_body(ScoreRequest, ("image",)),
        )(self.score)
        app.post(
            "/v1/look",
            response_model=LookReply,
            responses=_ERRORS,
            openapi_extra=_body(LookRequest, ("image",)),
        )(self.look)
        app.post(
            "/v1/words",
            response_model=WordsReply,
            responses=_ERRORS,
            openapi_extra=_body(WordsRequest),
        )(self.words)
        app.post(
            "/v1/animations",
            response_class=Response,
            responses={
                **_ERRORS,
                200: {
                    "description": "The film.",
                    "content": {kind: {"schema": _BINARY} for kind in FILMS.values()},
                },
            },
            openapi_extra=_body(AnimationRequest),
        )(self.animations)
        app.post(
            "/v1/rollouts",
            response_class=Response,
            responses={
                **_ERRORS,
                200: {
                    "description": "Server-sent events: `start` (RolloutStart), `step` "
                    "(RolloutStepMessage) for every action, `end` (RolloutEnd); or `error` "
                    "(ErrorReply), which ends it.",
                    "content": {
                        "text/event-stream": {"schema": {"type": "string"}, "x-events": _EVENTS}
                    },
                },
            },
            openapi_extra=_body(RolloutRequest, ("image",)),
        )(self.rollouts)

    async def predict(self, request: Request) -> Response:
        """Draw N next frames; returns the one that the verifier likes best."""
        body = await read(request, PredictRequest)
        with self.admitted():
            return _respond(await self._in_time(self._backend.predict(body, self._time)))

    async def label(self, request: Request) -> Response:
        """Name the action between two pictures."""
        body = await read(request, LabelRequest)
        with self.admitted():
            return _respond(await self._in_time(self._backend.label(body, self._time)))

    async def score(self, request: Request) -> Response:
        """Score pictures of any origin: the verifier as a reward."""
        body = await read(request, ScoreRequest)
        with self.admitted():
            return _respond(await self._in_time(self._backend.score(body, self._time)))

    async def look(self, request: Request) -> Response:
        """What the model sees of a picture, and whether that is unlike its training."""
        body = await read(request, LookRequest)
        with self.admitted():
            return _respond(await self._in_time(self._backend.look(body, self._time)))

    async def words(self, request: Request) -> Response:
        """Which words of an action the model does not know, and the nearest that it knows."""
        body = await read(request, WordsRequest)
        with self.admitted():
            return _respond(await self._in_time(self._backend.words(body, self._time)))

    async def animations(self, request: Request) -> Response:
        """Frames as a film."""
        asked = AnimationRequest.model_validate_json(await read(request, AnimationRequest))
        with self.admitted():
            try:
                content = await asyncio.to_thread(film, asked)
            except UserError as error:
                return _respond(to_response(error))
            return Response(content, media_type=FILMS[asked.kind])

    async def rollouts(self, request: Request) -> Response:
        """Imagine several actions in a row; every step is sent as it is made."""
        body = await read(request, RolloutRequest)
        return _EventStream(self, body)

    async def events(self, body: bytes) -> AsyncGenerator[Event]:
        """Events of a roll-out; the last one is an error if it took too long."""
        deadline = asyncio.get_running_loop().time() + self._time
        async with aclosing(self._backend.rollout(body, self._time)) as events:
            while True:
                try:
                    # Not around the loop: the consumer's own waiting must not be interrupted.
                    async with asyncio.timeout_at(deadline):
                        event = await anext(events, None)
                except TimeoutError:
                    late = self._late()
                    event = Event("error", late.body, late.status)
                if event is None:
                    return
                yield event
                if event.name == "error":
                    return

    @property
    def _time(self) -> float:
        return self._options.deadline_s

    async def _in_time(self, response: Awaitable[ServiceResponse]) -> ServiceResponse:
        """The response, or the error that it took too long."""
        try:
            async with asyncio.timeout(self._time):
                return await response
        except TimeoutError:
            return self._late()

    def _late(self) -> ServiceResponse:
        return error_response(
            503, f"no answer within {self._time:g} s; ask again later, or for less"
        )

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Count a request as open while the body runs.

        Raises:
            Refused: the most that may be open are open.
        """
        if self._open >= self._options.max_queued:
            raise Refused(503, "too many requests are waiting; ask again later", RETRY_AFTER_S)
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1


class _EventStream(Response):
    """A roll-out as server-sent events, or, if it begins with an error, a plain error response.

    Starlette's own streaming response leaves the iterator open when the client leaves.
    """

    def __init__(self, posts: _Posts, body: bytes) -> None:
        super().__init__()
        self._posts = posts
        self._body = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stay open while the client reads."""
        with self._posts.admitted():
            async with aclosing(self._posts.events(self._body)) as events:
                first = await anext(events)
                if first.name == "error":
                    await _respond(ServiceResponse(first.status, first.body))(scope, receive, send)
                    return
                await send({"type": "http.response.start", "status": 200, "headers": _SSE_HEADERS})
                await _send_event(send, first)
                try:
                    async for event in events:
                        await _send_event(send, event)
                except Exception:
                    _log.exception("a roll-out failed")
                    fault = error_response(500, "internal error, see the log")
                    await _send_event(send, Event("error", fault.body))
                await send({"type": "http.response.body", "body": b""})


async def _send_event(send: Send, event: Event) -> None:
    body = sse(event.name, event.body)
    await send({"type": "http.response.body", "body": body, "more_body": True})


def _add_reads(app: FastAPI, backend: Backend, metrics: HttpMetrics) -> None:
    @app.get("/v1/models", response_model=ModelsReply, responses=_READ_ERRORS)
    async def models() -> Response:
        """Rounds that can be asked, and limits."""
        return _respond(await backend.models())

    @app.get("/v1/scenes", response_model=ScenesReply, responses=_READ_ERRORS)
    async def scenes() -> Response:
        """Pictures to begin with, and actions that make sense on them."""
        return _respond(await backend.scenes())

    @app.get("/healthz", responses=_READ_ERRORS)
    async def healthz() -> dict[str, str]:
        """Whether the HTTP layer is up."""
        return {"status": "ok"}

    @app.get("/readyz", responses=_READ_ERRORS)
    async def readyz() -> Response:
        """Whether a round answers, and which."""
        status = await backend.status()
        if status.promoted is None:
            return _respond(error_response(503, status.refused or "no round is loaded yet"))
        ready = {"status": "ready", "round": status.promoted, "refused": status.refused}
        return Response(json.dumps(ready), media_type=_JSON)

    @app.get("/metrics", response_class=Response, responses=_READ_ERRORS)
    async def prometheus() -> Response:
        """Figures in the text format of Prometheus."""
        return Response(metrics.text(await backend.status()), media_type=CONTENT_TYPE)


def _add_page(app: FastAPI, page: Path) -> None:
    def serve_file(path: str, name: str) -> None:
        @app.get(path, include_in_schema=False)
        async def file() -> Response:
            return FileResponse(page / name, headers={"cache-control": "no-cache"})

    for name in sorted(path.name for path in page.iterdir() if path.suffix in _PAGE_KINDS):
        serve_file(_PAGE_PATHS.get(name, f"/{name}"), name)


def _respond(response: ServiceResponse) -> Response:
    headers = {"retry-after": str(RETRY_AFTER_S)} if response.status == 503 else None
    return Response(response.body, response.status, headers, media_type=_JSON)


async def _http_error(_: Request, error: Exception) -> Response:
    """Error response for an unknown path or method."""
    assert isinstance(error, HTTPException)
    body = error_response(error.status_code, str(error.detail)).body
    return Response(body, error.status_code, error.headers, media_type=_JSON)


def _body(kind: type[Message], files: tuple[str, ...] = ()) -> dict[str, Any]:
    """OpenAPI's description of a request that is JSON or, where it has files, a form with them."""
    schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
    content = {_JSON: {"schema": schema}}
    if files:
        form = json.loads(json.dumps(schema))
        form["properties"] |= dict.fromkeys(files, _BINARY)
        content["multipart/form-data"] = {"schema": form}
    return {"requestBody": {"required": True, "content": content}}
