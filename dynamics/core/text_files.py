"""JSON of others: one line for what is damaged or only a pointer."""

import json
from pathlib import Path
from typing import Any

from dynamics.core.errors import UserError
from dynamics.core.places import Place
from dynamics.core.pointers import HEAD_BYTES, pointer_kind

_WAYS_OUT = {"git_lfs": "git lfs pull", "git_annex": "git annex get"}


def read_json_object(path: Place) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UserError: it is damaged, or only a pointer.
    """
    payload = path.read_bytes()
    check_pointer(path, payload[:HEAD_BYTES])
    try:
        found = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); get it again") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} must hold a JSON object; get it again")
    return found


def check_no_pointers(folder: Path) -> None:
    """Refuse a folder in which weights or JSON are only pointers, see `check_pointer`."""
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".json") and path.is_file():
            with path.open("rb") as stream:
                check_pointer(path, stream.read(HEAD_BYTES))


def check_pointer(path: Place, head: bytes) -> None:
    """Refuse a file that begins like what version control leaves in place of a large one.

    Raises:
        UserError: with the command that brings the file.
    """
    if kind := pointer_kind(head):
        raise UserError(f"{path} is a pointer to a file, not the file: run {_WAYS_OUT[kind]}")
