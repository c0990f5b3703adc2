"""The check that every path on a command line goes through."""

from pathlib import Path

import typer

from dynamics.core.config import on_this_machine
from dynamics.core.errors import UserError


def local(param: typer.CallbackParam, value: Path | None) -> Path | None:
    """The ``callback`` of arguments and options that are paths.

    Raises:
        UserError: the value is an address such as ``s3://lab/runs``.
    """
    # A Path has one slash left of the two that were typed.
    typed = None if value is None else str(value).replace(":/", "://", 1)
    try:
        on_this_machine(typed)
    except ValueError as error:
        raise UserError(f"{param.opts[0]}: {error}") from error
    return value
