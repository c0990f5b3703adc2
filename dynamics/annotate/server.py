"""The page and its requests, on loopback: with the limits and checks of the service."""

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, Request
from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response

from dynamics.annotate.answers import Kind
from dynamics.annotate.session import Media, NotInTurnError, Session
from dynamics.core.config import ServeConfig
from dynamics.core.errors import UserError
from dynamics.data.labelled.listing import MAX_ACTION_CHARS
from dynamics.serving.http.app import PAGE
from dynamics.serving.http.metrics import HttpMetrics
from dynamics.serving.http.middleware import Refused, ServiceMiddleware
from dynamics.serving.http.request_body import read
from dynamics.serving.http.responses import error_response
from dynamics.serving.http.server import check_address, make_server
from dynamics.serving.schemas import Message

_OWN = Path(__file__).resolve().parent / "page"
_FILES = {
    "/": _OWN / "index.html",
    "/annotate.js": _OWN / "annotate.js",
    "/annotate.css": _OWN / "annotate.css",
    **{f"/{name}": PAGE / name for name in ("style.css", "dom.js", "theme.js")},
}
_MAX_OPEN = 16
_JSON = "application/json"
Pair = Annotated[str, Field(pattern=r"^[0-9a-f]{1,64}$")]


class UndoRequest(Message):
    """Takes the last answer back."""

    turn: int = Field(ge=0)
    """Answers that the page knows of; tells a request that is repeated, or of another tab."""


class AnswerRequest(UndoRequest):
    """What was done between the two frames of a pair."""

    pair: Pair
    kind: Kind
    action: str = Field(default="", max_length=MAX_ACTION_CHARS)
    """The sentence of kind ``action``."""


def make_app(session: Session) -> FastAPI:
    """The application of one annotator."""
    app = FastAPI(title="dynamics annotate", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(ServiceMiddleware, key=None, metrics=HttpMetrics(), max_open=_MAX_OPEN)
    app.add_exception_handler(HTTPException, _http_error)

    @app.get("/v1/state")
    async def state() -> Response:
        return await _state(session)

    @app.get("/v1/pairs/{pair}")
    async def pair(pair: str) -> Response:
        media = await _media(session, pair)
        about = {
            "columns": media.columns,
            "width": media.width,
            "height": media.height,
            "times_s": media.times_s,
            "ends": media.ends,
        }
        return Response(json.dumps(about), media_type=_JSON)

    @app.get("/v1/pairs/{pair}/{name}")
    async def picture(pair: str, name: str) -> Response:
        media = await _media(session, pair)
        files = {
            "film.jpg": media.sprite,
            "source.png": media.pngs[0],
            "target.png": media.pngs[1],
        }
        if name not in files:
            raise HTTPException(404)
        kind = "image/png" if name.endswith(".png") else "image/jpeg"
        headers = {"cache-control": "private, max-age=600"}
        return Response(files[name], media_type=kind, headers=headers)

    @app.post("/v1/answers")
    async def answers(request: Request) -> Response:
        asked = AnswerRequest.model_validate_json(await read(request, AnswerRequest))
        return await _changed(session, session.answer, *_fields(asked))

    @app.post("/v1/undo")
    async def undo(request: Request) -> Response:
        asked = UndoRequest.model_validate_json(await read(request, UndoRequest))
        return await _changed(session, session.undo, asked.turn)

    for path, file in _FILES.items():
        _serve_file(app, path, file)
    return app


def check_port(port: int) -> None:
    """Refuse a port that is taken, before anything slow begins.

    Raises:
        UserError: it is.
    """
    try:
        check_address(ServeConfig(port=port))
    except UserError as error:
        raise UserError(f"port {port} is in use; choose another one with --port") from error


def serve(session: Session, port: int) -> None:
    """Answer on loopback until the process is interrupted."""
    with suppress(KeyboardInterrupt):  # Ctrl-C is how it ends
        asyncio.run(make_server(make_app(session), "127.0.0.1", port).serve())


def _fields(asked: AnswerRequest) -> tuple[int, str, Kind, str]:
    return asked.turn, asked.pair, asked.kind, asked.action


async def _state(session: Session) -> Response:
    state = await asyncio.to_thread(session.state)
    return Response(json.dumps(state), media_type=_JSON, headers={"cache-control": "no-store"})


async def _changed(session: Session, change: Callable[..., None], *arguments: object) -> Response:
    """Change the answers, and reply with the new state, or with why they did not change."""
    try:
        await asyncio.to_thread(change, *arguments)
    except NotInTurnError as error:
        raise Refused(409, str(error)) from error
    except UserError as error:
        raise Refused(422, str(error)) from error
    return await _state(session)


async def _media(session: Session, pair: str) -> Media:
    media = await asyncio.to_thread(session.media, pair)
    if isinstance(media, str):
        raise Refused(404, media)
    return media


def _serve_file(app: FastAPI, path: str, file: Path) -> None:
    @app.get(path)
    async def page() -> Response:
        return FileResponse(file, headers={"cache-control": "no-cache"})


async def _http_error(_: Request, error: Exception) -> Response:
    """Reply to an unknown path or method."""
    assert isinstance(error, HTTPException)
    body = error_response(error.status_code, str(error.detail)).body
    return Response(body, error.status_code, error.headers, media_type=_JSON)
