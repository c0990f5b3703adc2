"""Request bodies: JSON, or a form with files, to validated JSON."""

import asyncio
import base64
from typing import Any

from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException

from dynamics.serving.http.middleware import Refused, media_type
from dynamics.serving.http.responses import explain
from dynamics.serving.schemas import MAX_BODY_BYTES, MAX_STEPS, Message

BODY_TIMEOUT_S = 10.0
"""Longest time that a client may take to send its request."""


async def read(request: Request, kind: type[Message]) -> bytes:
    """The body as JSON of the message, validated.

    Raises:
        Refused: it is no such message, or came too slowly.
    """
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            if media_type(request.scope) == "multipart/form-data":
                return (await _form(request, kind)).model_dump_json(exclude_unset=True).encode()
            body = await request.body()
        kind.model_validate_json(body)
        return body
    except TimeoutError as error:
        raise Refused(408, f"the request did not arrive within {BODY_TIMEOUT_S:g} s") from error
    except ValidationError as error:
        raise Refused(422, explain(error)) from error


async def _form(request: Request, kind: type[Message]) -> Message:
    """A form with files as pictures; ``actions`` may be given several times.

    Raises:
        Refused: it is no such form.
        ValidationError: its fields are not those of the message.
    """
    try:
        form = await request.form(
            max_files=2, max_fields=MAX_STEPS + 16, max_part_size=MAX_BODY_BYTES
        )
    except (MultiPartException, HTTPException, ValueError) as error:
        raise Refused(422, "the body is not a form that can be read") from error
    fields: dict[str, Any] = {}
    try:
        for name, value in form.multi_items():
            content: Any = value
            if isinstance(value, UploadFile):
                content = base64.b64encode(await value.read()).decode()
            if name == "actions":
                fields.setdefault(name, []).append(content)
            else:
                fields[name] = content
    finally:
        await form.close()
    return kind.model_validate(fields)
