"""Progress of a stage: the callback that every long stage calls, and the pace that it tells."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

Losses = Mapping[str, float]
"""Loss at the last logged step, per task (``idm``, ``fdp``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Detail:
    """What else a stage tells of itself; to tell more, add a field."""

    note: str = ""
    """Why the stage does not advance; empty when it does."""
    queued: int = 0
    """Items that wait for a worker."""
    losses: Losses = field(default_factory=dict)
    """Of the fits that go on."""


NO_DETAIL = Detail()


class Progress(Protocol):
    """Callback that shows, or writes down, how far a stage is."""

    def __call__(self, done: int, total: int, what: str, detail: Detail = NO_DETAIL) -> None:
        """Take note that ``done`` of ``total`` of ``what`` are finished.

        Args:
            done: rows, steps or files; what an earlier command finished is counted in.
            total: how many there are, 0 when nobody knows.
            what: name of the stage, in a round with its number: ``label, round 1``.
            detail: what else there is to tell.
        """


def silent(done: int, total: int, what: str, detail: Detail = NO_DETAIL) -> None:
    """The progress callback that shows nothing."""


class Pace:
    """Speed of a stage, averaged since it began or went on in this process."""

    def __init__(self) -> None:
        self.what = ""
        self.done = self.total = 0
        self._began = 0.0
        self._ended: float | None = None
        self._done_before = 0

    def advance(self, done: int, total: int, what: str) -> bool:
        """Take in a call of `Progress`; True when it begins a stage."""
        begins = what != self.what or done < self.done
        if begins:
            self._began, self._ended, self._done_before = time.monotonic(), None, done
        self.done, self.total, self.what = done, total, what
        if done >= total > 0 and self._ended is None:
            self._ended = time.monotonic()
        return begins

    @property
    def seconds(self) -> float:
        """Time since the stage began, until its end."""
        return (time.monotonic() if self._ended is None else self._ended) - self._began

    @property
    def per_s(self) -> float:
        """Finished in this process, by second; 0 before the first."""
        return (self.done - self._done_before) / max(self.seconds, 1e-3)

    @property
    def eta_s(self) -> float | None:
        """Seconds until all are finished; None where total or speed are unknown."""
        left = self.total - self.done
        return left / self.per_s if left >= 0 and self.total and self.per_s else None


def duration(seconds: float) -> str:
    """A time in its two largest units: ``48 s``, ``7 min 5 s``, ``3 h 20 min``, ``6 d 1 h``."""
    whole = round(seconds)
    units = [("d", 86400), ("h", 3600), ("min", 60), ("s", 1)]
    first = next((index for index, (_, size) in enumerate(units) if whole >= size), 3)
    parts: list[str] = []
    for name, size in units[first : first + 2]:
        count, whole = divmod(whole, size)
        if count or not parts:
            parts.append(f"{count} {name}")
    return " ".join(parts)
