"""Manifests: lists of rows in JSON files."""

import json
from typing import Any

from dynamics.core.errors import UserError
from dynamics.core.places import Place
from dynamics.storage.files import file_size

MAX_MANIFEST_BYTES = 1 << 30


def read_rows(path: Place) -> list[dict[str, Any]]:
    """The rows of a JSON file that holds a list of objects; other entries become empty rows.

    Raises:
        UserError: the file is missing, larger than 1 GiB, no JSON, or no list.
    """
    try:
        if file_size(path) > MAX_MANIFEST_BYTES:
            raise UserError(f"{path} is larger than 1 GiB; split it")
        rows = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check labelled.path") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON; get it again") from error
    if not isinstance(rows, list):
        raise UserError(f"{path} must hold a list of rows, not a {type(rows).__name__}")
    return [row if isinstance(row, dict) else {} for row in rows]
