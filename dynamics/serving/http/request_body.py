"""Request bodies: JSON, or a form with files, to validated JSON."""

import asyncio
import base64
import re
from typing import Any, get_origin

from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException

from dynamics.serving.http.middleware import Refused, media_type
from dynamics.serving.http.responses import explain
from dynamics.serving.schemas import MAX_BODY_BYTES, MAX_SAMPLES, MAX_STEPS, Message

BODY_TIMEOUT_S = 10.0
"""Longest time that a client may take to send its request."""
MAX_PARTS = 64
"""Most fields, list items and brackets of a JSON body."""
_MAX_QUOTES = 16_384
_MAX_BARE_BYTES = 4096
"""Most bytes of a JSON body that are not in strings: numbers, brackets, spaces."""
_SMALL_BYTES = 2**16
"""Most bytes that are checked without a thread, which would cost more."""
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)


async def read(request: Request, kind: type[Message]) -> bytes:
    """The body as JSON of the message, validated.

    Raises:
        Refused: it is no such message, or came too slowly.
    """
    content: bytes | dict[str, Any]
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            if media_type(request.scope) == "multipart/form-data":
                content = await _form(request, kind)
            else:
                content = await request.body()
    except TimeoutError as error:
        raise Refused(408, f"the request did not arrive within {BODY_TIMEOUT_S:g} s") from error
    if isinstance(content, bytes) and len(content) <= _SMALL_BYTES:
        return _checked(content, kind)
    return await asyncio.to_thread(_checked, content, kind)


def _checked(content: bytes | dict[str, Any], kind: type[Message]) -> bytes:
    """JSON of a message, from JSON or from the fields of a form.

    Raises:
        Refused: it is no such message.
    """
    try:
        if isinstance(content, dict):
            return kind.model_validate(content).model_dump_json(exclude_unset=True).encode()
        _check_structure(content)
        kind.model_validate_json(content)
        return content
    except ValidationError as error:
        raise Refused(422, explain(error)) from error


def _check_structure(body: bytes) -> None:
    """Refuse JSON of more parts than a message has: a million fields are a million errors.

    Raises:
        Refused: they are too many.
    """
    bare = _STRING.sub(b"", body) if body.count(b'"') <= _MAX_QUOTES else body
    if len(bare) > _MAX_BARE_BYTES or sum(map(bare.count, (b",", b"[", b"{"))) > MAX_PARTS:
        raise Refused(422, f"the body has more than the {MAX_PARTS} fields and items of a request")


async def _form(request: Request, kind: type[Message]) -> dict[str, Any]:
    """Fields of a form with files as pictures; a field that is a list may be given several times.

    Raises:
        Refused: it is no form.
    """
    try:
        form = await request.form(
            max_files=1 + MAX_SAMPLES, max_fields=MAX_STEPS + 16, max_part_size=MAX_BODY_BYTES
        )
    except (MultiPartException, HTTPException, ValueError) as error:
        raise Refused(422, "the body is not a form that can be read") from error
    lists = [name for name, one in kind.model_fields.items() if get_origin(one.annotation) is list]
    fields: dict[str, Any] = {}
    try:
        for name, value in form.multi_items():
            content: Any = value
            if isinstance(value, UploadFile):
                content = base64.b64encode(await value.read()).decode()
            if name in lists:
                fields.setdefault(name, []).append(content)
            else:
                fields[name] = content
    finally:
        await form.close()
    return fields
