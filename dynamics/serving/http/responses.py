"""Responses: status and JSON body, and the status that each exception becomes."""

from typing import NamedTuple, TypeVar

from pydantic import ValidationError

from dynamics.core.errors import UserError
from dynamics.core.images import PictureError
from dynamics.serving.batching import ExpiredError
from dynamics.serving.errors import NotReadyError
from dynamics.serving.schemas import ErrorReply, Message

MAX_PROBLEMS = 5
"""Most problems of a request that are named."""
Request = TypeVar("Request", bound=Message)


class ServiceResponse(NamedTuple):
    """An HTTP status and a JSON body."""

    status: int
    body: str


class Event(NamedTuple):
    """One event of a roll-out; ``status`` counts while nothing has been sent yet."""

    name: str
    body: str
    status: int = 200


def parse(kind: type[Request], body: bytes) -> Request:
    """A message from JSON.

    Raises:
        ValidationError: it is none.
    """
    return kind.model_validate_json(body)


def to_response(error: Exception) -> ServiceResponse:
    """The error response for an exception; raises it again when it is a fault of the service."""
    if isinstance(error, ValidationError):
        return error_response(422, explain(error))
    if isinstance(error, ExpiredError):
        return error_response(503, "no answer within the time limit; ask again later, or for less")
    if isinstance(error, NotReadyError):
        return error_response(503, one_line(error))
    if isinstance(error, PictureError) and error.reason == "too_large":
        return error_response(413, one_line(error))
    if isinstance(error, UserError):
        return error_response(422, one_line(error))
    raise error


def error_response(status: int, detail: str) -> ServiceResponse:
    """A response with an `ErrorReply`."""
    return ServiceResponse(status, ErrorReply(detail=detail).model_dump_json())


def explain(error: ValidationError) -> str:
    """The first problems in one line, without the values that were sent."""
    problems = []
    found = error.errors(include_input=False, include_url=False, include_context=False)
    for problem in found[:MAX_PROBLEMS]:
        place = ".".join(str(part)[:64] for part in problem["loc"])
        problems.append(f"{place}: {problem['msg']}" if place else problem["msg"])
    return one_line("; ".join(problems))


def one_line(error: Exception | str) -> str:
    """Text of an error without control characters, at most 500 characters."""
    text = " ".join(str(error).split())
    return "".join(letter for letter in text if letter.isprintable())[:500] or "unknown error"
