"""Pairs that could be asked about, found in the background, and which of them comes next.

Clips are read in the order of a hash of their names, so that those at hand are a fair part of the
folder while the rest is still unread. At most `MOST_WAITING` unanswered pairs are held.

D numbers describe a pair: small versions of its first frame, and of what changes.
"""

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dynamics.annotate.answers import Shot
from dynamics.core.records import pair_id
from dynamics.data.video.decode import ClipFrames
from dynamics.data.video.ingest import ClipReader
from dynamics.data.video.sources import Clip
from dynamics.models.image_tokenizer import ImageTokenizer
from dynamics.storage.streams import read_ahead

MOST_WAITING = 2000
_GRID = 8
_CHANGE_WEIGHT = 3.0
"""How much what changes counts beside what is there: a fixed camera shows the same table always."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A sentence that a run's IDM suggests for a pair."""

    action: str
    confidence: float
    """Likelihood per token, 0..1."""


class Namer(Protocol):
    """A run's IDM."""

    round: int
    images: ImageTokenizer

    def name(self, frames_BHW3: np.ndarray, ends_P2: np.ndarray) -> list[Offer]:
        """Sentences for pairs of frames, which ``ends_P2`` counts out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A pair that could be asked about."""

    shot: Shot
    clip: Clip
    features: np.ndarray
    """float32 [D]."""
    offer: Offer | None = None


class Candidates:
    """The unanswered pairs of a folder, as far as its clips were read.

    Args:
        clips: in the order in which they are read.
        read: reads a clip's key frames.
        answered: pairs that are not asked about again.
        namer: the IDM of a run, or None.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        read: ClipReader,
        answered: Iterable[Shot],
        namer: Namer | None,
    ) -> None:
        self._clips, self._read, self._namer = clips, read, namer
        self._answered = {shot.pair_id for shot in answered}
        self._asked = Counter(shot.clip_path for shot in answered)
        """Pairs of each clip that were asked about."""
        self._waiting: dict[str, Candidate] = {}
        self._near: dict[str, float] = {}
        """Distance of each waiting pair from the nearest one that was asked about."""
        self._shown: list[np.ndarray] = []
        """Features of the pairs that were asked about, as far as their clips were read."""
        self._changed = threading.Condition()
        self._stopped = False
        self.num_read = self.num_bad = 0
        """Clips that were read, and those among them without any pair."""
        self.failed: Exception | None = None
        """What ended the reading before its time."""
        self._thread = threading.Thread(target=self._run, name="candidates", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self) -> None:
        """End reading."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    @property
    def complete(self) -> bool:
        """True when every clip was read."""
        return self.num_read == len(self._clips)

    @property
    def num_waiting(self) -> int:
        """Pairs at hand that were not asked about."""
        return len(self._waiting)

    def take(self) -> Candidate | None:
        """The pair to ask about next, which is none any more; None when none is at hand.

        Of the clips that were asked about least: with an IDM the pair that it is least sure of,
        else the one that differs most from all that were asked about before.
        """
        with self._changed:
            if not self._waiting:
                return None
            chosen = min(self._waiting.values(), key=self._rank)
            del self._waiting[chosen.shot.pair_id], self._near[chosen.shot.pair_id]
            self._asked[chosen.shot.clip_path] += 1
            self._seen(chosen)
            self._changed.notify_all()
            return chosen

    def _rank(self, one: Candidate) -> tuple[float, float, str]:
        sure = one.offer.confidence if one.offer else -self._near[one.shot.pair_id]
        return self._asked[one.shot.clip_path], sure, one.shot.pair_id

    def _seen(self, one: Candidate) -> None:
        self._shown.append(one.features)
        for pair, other in self._waiting.items():
            self._near[pair] = min(self._near[pair], _distance(one.features, other.features))

    def _run(self) -> None:
        try:
            with closing(read_ahead(self._read.read, self._clips)) as contents:
                for clip, content in contents:
                    found: list[Candidate] = []
                    if isinstance(content.result, ClipFrames):
                        found = list(self._candidates(clip, content.sha256, content.result))
                    self._add(found)
                    if self._stopped:
                        return
        except Exception as error:
            if not self._stopped:  # else it is that the decoders were ended
                self.failed = error

    def _add(self, found: Sequence[Candidate]) -> None:
        with self._changed:
            for one in found:
                if one.shot.pair_id in self._answered:
                    self._seen(one)
                else:
                    self._waiting[one.shot.pair_id] = one
                    near = (_distance(one.features, other) for other in self._shown)
                    self._near[one.shot.pair_id] = min(near, default=float("inf"))
            self.num_read += 1
            self.num_bad += not found
            self._changed.wait_for(lambda: self._stopped or len(self._waiting) < MOST_WAITING)

    def _candidates(self, clip: Clip, sha256: str, content: ClipFrames) -> Iterator[Candidate]:
        place = {index: row for row, index in enumerate(content.indices)}
        pairs = [pair for pair in content.pairs if pair.verdict == "accepted"]
        ends_P2 = np.array([(place[one.source], place[one.target]) for one in pairs], np.intp)
        offers: Sequence[Offer | None] = [None] * len(pairs)
        if self._namer is not None and pairs:
            offers = self._namer.name(content.frames, ends_P2)
        for pair, (source, target), offer in zip(pairs, ends_P2.tolist(), offers, strict=True):
            shot = Shot(
                pair_id=pair_id(sha256, pair.source, pair.target),
                clip_path=clip.name,
                clip_class=clip.clip_class,
                frame0=pair.source,
                frame1=pair.target,
                t0_s=content.times_s[source],
                t1_s=content.times_s[target],
            )
            features = _features(content.frames[source], content.frames[target])
            yield Candidate(shot=shot, clip=clip, features=features, offer=offer)


def _features(source_HW3: np.ndarray, target_HW3: np.ndarray) -> np.ndarray:
    source, target = (_small(frame_HW3) for frame_HW3 in (source_HW3, target_HW3))
    return np.concatenate([source, _CHANGE_WEIGHT * (target - source)])


def _small(frame_HW3: np.ndarray) -> np.ndarray:
    """Mean colours of a grid's cells, 0..1, float32; a rim that fills no cell is left out."""
    cell = len(frame_HW3) // _GRID
    cut = frame_HW3[: cell * _GRID, : cell * _GRID]
    cells = cut.reshape(_GRID, cell, _GRID, cell, 3).mean((1, 3), dtype=np.float32)
    return np.asarray(cells.ravel() / 255)


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(one - other))
