"""The outbox: all that a run tells MLflow, durable in the run folder before it is sent.

    outbox/00000000.jsonl   entries, a sealed JSON object a line; 500 a file, each written at once

Entries are never changed, and have the times of what they tell: sending one again changes nothing,
since MLflow keeps one of equal points. No curve gets two points of one step.
"""

import json
import secrets
import threading
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

from dynamics.core.errors import UserError
from dynamics.core.places import Place, matching
from dynamics.storage.files import write_bytes
from dynamics.storage.sealed import seal, unsealed

Entry = dict[str, Any]
"""``kind`` (start, begin, points, results, promotion or end), ``round`` (null = the whole run),
``time`` in milliseconds, and what the kind needs."""

_ENTRIES_A_FILE = 500
_MOST_POINTS = 1000
"""Points that MLflow takes in one call."""


class Point(NamedTuple):
    """A point of a curve; ``time`` in milliseconds."""

    name: str
    value: float
    time: int
    step: int


class Outbox:
    """The entries of a run, in the order in which they are sent; any thread may add some.

    Args:
        folder: holds nothing else; made with the first entry.

    Raises:
        UserError: a file is damaged.
    """

    def __init__(self, folder: Place) -> None:
        self._folder = folder
        self._lines: list[str] = []
        self._last_steps: dict[tuple[int | None, str], int] = {}
        self._adding = threading.RLock()
        for path in matching(folder, "*.jsonl"):
            try:
                lines = path.read_text().splitlines()
                self._note([unsealed(json.loads(line)) for line in lines])
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise UserError(
                    f"{path} is damaged; delete {folder}, and MLflow gets another run"
                ) from error
            self._lines += lines

    def __len__(self) -> int:
        return len(self._lines)

    def entries(self, start: int = 0) -> Iterator[Entry]:
        """The entries from the ``start``-th on."""
        return (unsealed(json.loads(line)) for line in islice(self._lines, start, None))

    def batch(self, start: int) -> list[Entry]:
        """The ``start``-th entry; of points with those behind it that fit into the same call."""
        found: list[Entry] = []
        num_points = 0
        for entry in self.entries(start):
            num_points += len(entry.get("points", ()))
            if found and (
                entry["kind"] != "points"
                or (entry["kind"], entry["round"]) != (found[0]["kind"], found[0]["round"])
                or num_points > _MOST_POINTS
            ):
                break
            found.append(entry)
        return found

    def start(self, **content: Any) -> None:
        """Add the first entry, where there is none; it names the run for ever."""
        with self._adding:
            if not self._lines:
                self.add("start", None, run=secrets.token_hex(8), **content)

    def add(self, kind: str, round_id: int | None, at: int | None = None, **content: Any) -> None:
        """Add an entry, of now or of a time; durable when it returns.

        Raises:
            UserError: the disk is full, or the store refuses.
        """
        entry = {"kind": kind, "round": round_id, "time": at or now(), **content}
        with self._adding:
            number = len(self._lines) // _ENTRIES_A_FILE
            lines = [*self._lines[number * _ENTRIES_A_FILE :], json.dumps(seal(entry))]
            path = self._folder / f"{number:08d}.jsonl"
            write_bytes(path, ("\n".join(lines) + "\n").encode())
            self._lines.append(lines[-1])
            self._note([entry])

    def add_points(self, round_id: int | None, points: Iterable[Point]) -> None:
        """Add points; those of steps that their curve has, or has passed, are left out."""
        with self._adding:
            fresh = [point for point in points if point.step > self.last(round_id, point.name)]
            for start in range(0, len(fresh), _MOST_POINTS):
                self.add("points", round_id, points=fresh[start : start + _MOST_POINTS])

    def last(self, round_id: int | None, name: str) -> int:
        """The last step of a curve, -1 before the first."""
        return self._last_steps.get((round_id, name), -1)

    def _note(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            for name, _, _, step in entry.get("points", ()):
                self._last_steps[entry["round"], name] = step


def now() -> int:
    """Milliseconds since 1970."""
    return int(1000 * time.time())
