"""Manifests: lists of rows in JSON files, or a row a line."""

import json
from typing import Any

from dynamics.core.errors import UserError
from dynamics.core.places import Place
from dynamics.data.text import read_text


def read_rows(path: Place) -> list[dict[str, Any]]:
    """The rows of a file: a JSON list of objects, or JSON lines.

    Other entries become empty rows.

    Raises:
        UserError: the file cannot be read as text, is no JSON, or holds no list.
    """
    text = read_text(path)
    if not text.strip():
        raise UserError(f"{path} is empty")
    try:
        rows = _lines(text) or json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON{_where(error)}; correct it there") from error
    if not isinstance(rows, list):
        raise UserError(f"{path} must hold a list of rows, not {_named(rows)}")
    return [row if isinstance(row, dict) else {} for row in rows]


def _lines(text: str) -> list[Any]:
    """The rows of JSON lines; none when the first line alone is no object, or all there is."""
    lines = [line for line in text.split("\n") if line.strip()]
    try:
        first = json.loads(lines[0]) if len(lines) > 1 else None
    except (ValueError, RecursionError):
        return []
    if not isinstance(first, dict):
        return []
    rows = [first]
    for number, line in enumerate(lines[1:], start=2):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"row {number} is no JSON object of one line") from error
    return rows


def _where(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        before, after = error.doc[: error.pos].rstrip(), error.doc[error.pos :]
        found = ""
        if before.endswith(",") and after.startswith(("]", "}")):
            found = "; a comma stands before it"
        elif error.msg.startswith("Unterminated") or not after.strip():
            found = "; the file may be cut"
        elif error.msg == "Extra data" and after.startswith("{"):
            found = "; objects one after the other become a list by jq -s ."
        elif not before:
            found = f"; it begins with {after[:20]!r}"
        return f" at line {error.lineno}, column {error.colno} ({error.msg}{found})"
    return f" ({error})"


def _named(found: Any) -> str:
    if not isinstance(found, dict):
        return f"a {type(found).__name__}"
    lists = [f"jq .{key}" for key, value in found.items() if isinstance(value, list)]
    if found and all(isinstance(value, dict) for value in found.values()):
        return "an object of rows; write them as a list: jq '[.[]]'"
    return f"an object; write the list in it alone: {' or '.join(lists)}" if lists else "an object"
