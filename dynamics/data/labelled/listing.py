"""Listings of data sets: pairs of pictures or segments of videos, and rejected rows."""

import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import Protocol

from dynamics.core.errors import UserError
from dynamics.core.places import Place
from dynamics.data.labelled.paths import Refused
from dynamics.data.refusals import way_out
from dynamics.data.video.sources import plain_text

MAX_ACTION_CHARS = 512
"""Longest action sentence; the generator's endpoint takes no longer one either."""

_PARTS = ("missing_manifest", "archive")
"""Reasons of rejects that are no rows."""

# Names of special and image tokens in the vocabularies of the model families: in an action
# sentence they are an accident or an attack.
_SPECIAL = re.compile(r"<[^<>\s]{1,60}>|IMGIMG[A-J]+Z")
_UNSPOKEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")
"""Control characters and invisible marks of direction."""


class Picture(Protocol):
    """An encoded picture; picklable, since other processes read it."""

    @property
    def name(self) -> str:
        """Name in messages, different for every picture of a file."""

    @property
    def path(self) -> Place:
        """The file that holds it."""

    def read(self) -> bytes:
        """The encoded bytes.

        Raises:
            Refused: they cannot be read.
        """


@dataclass(frozen=True, slots=True)
class Stills:
    """Two pictures."""

    source: Picture
    target: Picture


@dataclass(frozen=True, slots=True)
class Segment:
    """The first and the last frame of a video or of a part of it."""

    path: Place
    span_s: tuple[float, float] | None = None
    """Seconds from the video's beginning; None is the whole video."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledPair:
    """A pair of frames with its action sentence; nothing of it is decoded yet."""

    name: str
    """Origin of the pair; becomes ``clip_path``."""
    frames: Stills | Segment
    action: str
    """Plain text, 1 to `MAX_ACTION_CHARS` characters."""
    clip_class: str = ""
    sources: tuple[str, ...]
    """Videos or pictures that it was cut from. Pairs that share one are never split between
    labelled and held-out set."""
    place: int = 0
    """Number among the usable rows of the data set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """Everything that a manifest listed."""

    title: str
    """Name of the data set and where it was looked for."""
    origin: str
    """Addresses to get its parts from."""
    pairs: tuple[LabelledPair, ...]
    rejects: tuple[tuple[str, str], ...]
    """(name, reason) of every row or part that cannot be used."""

    def counts(self) -> Counter[str]:
        """Rejects by reason."""
        return Counter(reason for _, reason in self.rejects)

    def summary(self) -> str:
        """One line: what is used, what is left out and why, and where to get what is missing."""
        rows = [reason for _, reason in self.rejects if reason not in _PARTS]
        total = len(self.pairs) + len(rows)
        line = f"{self.title}: {len(self.pairs):,} of {total:,} rows can be used"
        if not self.rejects:
            return line
        first = {reason: name for name, reason in reversed(self.rejects)}
        left_out = ", ".join(
            f"{count:,} {reason} (e.g. {first[reason]}){way_out(reason)}"
            for reason, count in sorted(self.counts().items())
        )
        missing = any(reason.startswith("missing") for reason in first)
        where = f"; where to get what is missing: {self.origin}" if missing else ""
        return f"{line}; left out: {left_out}{where}"


class Collector:
    """Gathers the pairs and rejects of one data set."""

    def __init__(self, title: str, origin: str) -> None:
        self._title = title
        self._origin = origin
        self._pairs: list[LabelledPair] = []
        self._rejects: list[tuple[str, str]] = []

    def add(self, pair: LabelledPair) -> None:
        """Add a usable row."""
        self._pairs.append(replace(pair, place=len(self._pairs)))

    def reject(self, name: object, reason: str) -> None:
        """Add a row, or a part of the set, that cannot be used."""
        self._rejects.append((printable(name), reason))

    def lacks(self, reason: str) -> bool:
        """True when something was left out for a reason."""
        return any(reason == why for _, why in self._rejects)

    def done(self) -> Labelled:
        """The listing.

        Raises:
            UserError: not one row can be used.
        """
        found = Labelled(
            title=self._title,
            origin=self._origin,
            pairs=tuple(self._pairs),
            rejects=tuple(self._rejects),
        )
        if not found.pairs:
            raise UserError(f"{found.summary()}; check labelled.path and labelled.dataset")
        return found


def plain_action(said: object) -> str:
    """An action sentence as plain text on one line; of a list of wordings the first.

    Raises:
        Refused: ``no_action``, ``long_action`` or ``special_token``.
    """
    if isinstance(said, list | tuple):
        said = said[0] if said else ""
    if not isinstance(said, str):
        raise Refused("no_action")
    if len(said) > 4 * MAX_ACTION_CHARS:  # before any work on it
        raise Refused("long_action")
    text = " ".join(_UNSPOKEN.sub(" ", said.encode(errors="replace").decode()).split())
    if not text:
        raise Refused("no_action")
    if len(text) > MAX_ACTION_CHARS:
        raise Refused("long_action")
    if _SPECIAL.search(text):
        raise Refused("special_token")
    return text


def printable(name: object) -> str:
    """A name from a manifest, fit for one line of a message or a table."""
    text = plain_text(str(name))
    return text if len(text) <= 200 else f"{text[:197]}..."
