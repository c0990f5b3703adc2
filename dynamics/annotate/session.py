"""What an annotator is asked, pair after pair, and what becomes of the answers."""

import io
import math
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dynamics.annotate.answers import (
    Agreement,
    Answer,
    Journal,
    Kind,
    Shot,
    all_answers,
    keep_frames,
    newest,
    with_oneself,
    with_others,
    write_labels,
)
from dynamics.annotate.audit import Audit, Drawn
from dynamics.annotate.candidates import Candidates, Namer, Offer
from dynamics.core.config import KeyframeConfig, PoolConfig
from dynamics.core.errors import UserError
from dynamics.core.images import encode_png
from dynamics.core.places import Place
from dynamics.core.records import stable_hash
from dynamics.data.labelled.listing import plain_action
from dynamics.data.labelled.paths import Refused
from dynamics.data.video.decode import DecodeSpec, Film, FilmSpec
from dynamics.data.video.ingest import ClipReader
from dynamics.data.video.sandbox import close_decoders, decoder
from dynamics.data.video.sources import SOURCES, Clip
from dynamics.data.video.unpack import as_file

AHEAD = 3
"""Pairs that are chosen and decoded before they are asked about."""
_FILM_FRAMES = 24
_KEPT_FILMS = 12
_LEAST_GAP = 12
"""Answers between two about the same pair."""
_SHOWN_WORDS = 200
_FRAME_PX = 64
"""Side of the frames by which pairs are compared where no IDM looks at them."""
_QUIET_S = 0.5
_QUIET_TIMES = 10
"""The table is written again after so many times of what it took last: a tenth of the time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Media:
    """A pair as the page shows it."""

    sprite: bytes
    """JPEG of the film's frames, ``columns`` a row."""
    columns: int
    width: int
    height: int
    times_s: tuple[float, ...]
    ends: tuple[int, int]
    """Which frames of the film are the pair's."""
    pngs: tuple[bytes, bytes]
    """The pair's frames."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A pair that is asked about."""

    shot: Shot
    clip: Clip
    offer: Offer | None = None


class NotInTurnError(UserError):
    """An answer to another pair than the one that is asked about."""


class Films:
    """Films of pairs, decoded once while they are needed."""

    def __init__(self, memory_mb: int, timeout_s: float) -> None:
        self._limits = (memory_mb, timeout_s)
        self._kept: OrderedDict[str, Media | str] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, task: Task) -> Media | str:
        """The film of a pair, or why there is none."""
        with self._lock:  # one at a time: the next pair's must not slow this one's down
            key = task.shot.pair_id
            if key not in self._kept:
                self._kept[key] = self._decoded(task)
                while len(self._kept) > _KEPT_FILMS:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key]

    def _decoded(self, task: Task) -> Media | str:
        first, last = task.shot.frame0, task.shot.frame1
        around = max(2, (last - first) // 3)
        span = np.linspace(max(0, first - around), last + around, _FILM_FRAMES).round().astype(int)
        indices = tuple(sorted({*span.tolist(), first, last}))
        try:
            with decoder(*self._limits) as worker, as_file(task.clip) as path:
                film = worker.film(path, FilmSpec(indices=indices, ends=(first, last)))
        except FileNotFoundError as error:
            return f"{task.clip.name} cannot be read now: {error.strerror}"
        if not isinstance(film, Film):
            return f"{task.clip.name} cannot be read now: {film.reason} {film.detail}".strip()
        return _media(film, (indices.index(first), indices.index(last)))


def _media(film: Film, ends: tuple[int, int]) -> Media:
    count, height, width, _ = film.frames.shape
    columns = math.ceil(math.sqrt(count))
    cells = np.zeros((columns * math.ceil(count / columns), height, width, 3), np.uint8)
    cells[:count] = film.frames
    rows = cells.reshape(-1, columns, height, width, 3).swapaxes(1, 2)
    sink = io.BytesIO()
    Image.fromarray(rows.reshape(-1, columns * width, 3)).save(sink, "JPEG", quality=80)
    source, target = (encode_png(frame) for frame in film.ends)
    return Media(
        sprite=sink.getvalue(),
        columns=columns,
        width=width,
        height=height,
        times_s=film.times_s,
        ends=ends,
        pngs=(source, target),
    )


class Session:
    """One annotator at work. Its methods may be called by several threads.

    Args:
        out: the labelled set; answers lie beside it.
        who: the annotator.
        clips: the folder's, by name.
        candidates: pairs that were not asked about, in the order in which they are.
        films: decodes pairs.
        round_id: of the run whose IDM offers sentences; None without one.
        repeat_every: every so many answers a pair comes back that was named before; 0 never.
        audit: the accepted labels that are asked about; None outside an audit.

    Raises:
        UserError: a damaged file of answers.
    """

    def __init__(
        self,
        out: Path,
        journal: Journal,
        who: str,
        clips: Mapping[str, Clip],
        candidates: Candidates | Drawn,
        films: Films,
        round_id: int | None,
        repeat_every: int,
        audit: Audit | None = None,
    ) -> None:
        self._out, self._folder, self._journal, self._who = out, answers_folder(out), journal, who
        self.clips, self._candidates, self._films = clips, candidates, films
        self.num_labels = self.num_sentences = 0
        """Of the table, once the session has ended."""
        self._round, self._repeat_every, self._audit = round_id, repeat_every, audit
        self._ahead: deque[Task] = deque()
        self._done: dict[str, Task] = {}
        """Answered in this session, by pair."""
        self._others = {
            name: answers for name, answers in all_answers(self._folder).items() if name != who
        }
        self._lock = threading.RLock()
        self._dirty = threading.Event()
        self._ended = False
        self._threads = [
            threading.Thread(target=self._prepare, name="films", daemon=True),
            threading.Thread(target=self._keep_written, name="labels", daemon=True),
        ]
        self._wanted = threading.Condition()

    def start(self) -> None:
        """Begin to choose pairs, and to keep the table up to date."""
        self._candidates.start()
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Write the table a last time."""
        self._ended = True
        self._candidates.stop()
        self._dirty.set()
        with self._wanted:
            self._wanted.notify_all()
        self._threads[1].join()
        self._journal.close()
        self.num_labels = write_labels(self._out, self._folder)
        self.num_sentences = len(self._words())

    def agreement(self) -> tuple[Agreement, Agreement]:
        """With oneself, and of all annotators."""
        return with_oneself(self.answers), with_others(self.everybody())

    @property
    def answers(self) -> Sequence[Answer]:
        """What this annotator has said."""
        return self._journal.answers

    def everybody(self) -> dict[str, Sequence[Answer]]:
        """All answers by name, others' as they were at the start."""
        return {**self._others, self._who: self.answers}

    def state(self) -> dict[str, Any]:
        """What the page shows."""
        with self._lock:
            self._fill()
            kinds = Counter(answer.kind for answer in newest(self.answers).values())
            own, others = self.agreement()
            return {
                "who": self._who,
                "turn": len(self.answers),
                "counts": {"named": kinds["action"], **kinds},
                "words": self._words(),
                "agreement": {
                    "own": [own.same, own.asked],
                    "others": [others.same, others.asked],
                    "alpha": others.alpha,
                },
                "task": self._described(self._ahead[0]) if self._ahead else None,
                "next": [task.shot.pair_id for task in list(self._ahead)[1:]],
                "clips": len(self.clips),
                "read": self._candidates.num_read,
                "bad": self._candidates.num_bad,
                "waiting": self._candidates.num_waiting + len(self._ahead),
                "complete": self._candidates.complete,
                "failed": str(self._candidates.failed or ""),
            }

    def media(self, pair: str) -> Media | str:
        """A pair's pictures, of the one that is asked about or of those after it."""
        with self._lock:
            task = next((one for one in self._ahead if one.shot.pair_id == pair), None)
        return self._films.of(task) if task else "this pair is not asked about now"

    def answer(self, turn: int, pair: str, kind: Kind, action: str) -> None:
        """Keep an answer; it is on the disk when this returns. A repeated request changes nothing.

        Raises:
            UserError: it is none, or not to the pair that is asked about.
        """
        with self._lock:
            if turn == len(self.answers) - 1 and self.answers[-1].shot.pair_id == pair:
                return
            task = self._ahead[0] if self._ahead else None
            if task is None or task.shot.pair_id != pair or turn != len(self.answers):
                raise NotInTurnError("another pair is asked about now; look at the page again")
            answer = self._checked(task, kind, action)
            if kind == "action":
                media = self._films.of(task)
                if isinstance(media, str):
                    raise UserError(media)
                keep_frames(self._folder, pair, media.pngs)
            self._journal.append(answer)
            self._done[pair] = self._ahead.popleft()
            self._changed()

    def undo(self, turn: int) -> None:
        """Take the last answer back and ask about its pair again."""
        with self._lock:
            if turn != len(self.answers) or not turn:
                raise NotInTurnError("there is no answer to take back")
            shot = self._journal.undo().shot
            if shot.pair_id in self._done:
                self._ahead.appendleft(self._done[shot.pair_id])
            elif shot.clip_path in self.clips:
                self._ahead.appendleft(Task(shot=shot, clip=self.clips[shot.clip_path]))
            self._changed()

    def _checked(self, task: Task, kind: Kind, action: str) -> Answer:
        try:
            said = self._as_before(plain_action(action)) if kind == "action" else ""
        except Refused as error:
            raise UserError(f"the sentence cannot be used: {error}") from error
        return Answer(
            shot=task.shot,
            who=self._who,
            when=datetime.now(UTC).isoformat(timespec="milliseconds"),
            kind=kind,
            action=said,
            offered=task.offer.action if task.offer else "",
            round=self._round,
            label=self._label(task.shot),
        )

    def _label(self, shot: Shot) -> str:
        """The label that an audit asks about."""
        return self._audit.labels.get(shot.pair_id, "") if self._audit else ""

    def _as_before(self, sentence: str) -> str:
        """The spelling of an equal sentence that was used before: case and full stop aside."""
        alike = _alike(sentence)
        return next((one for one, _ in self._words() if _alike(one) == alike), sentence)

    def _words(self) -> list[tuple[str, int]]:
        """Sentences that were used, and in an audit the labelled set's, the most frequent first."""
        used: Counter[str] = Counter(self._audit.words if self._audit else ())
        for answers in self.everybody().values():
            used.update(one.action for one in newest(answers).values() if one.kind == "action")
        return used.most_common(_SHOWN_WORDS)

    def _described(self, task: Task) -> dict[str, Any]:
        offer = task.offer and {"action": task.offer.action, "confidence": task.offer.confidence}
        return {
            "pair": task.shot.pair_id,
            "clip": task.clip.name,
            "from_s": task.shot.t0_s,
            "to_s": task.shot.t1_s,
            "offer": offer,
        }

    def _fill(self) -> None:
        """Choose the next pairs, as far as some are at hand."""
        while len(self._ahead) <= AHEAD and (task := self._chosen()) is not None:
            self._ahead.append(task)
        with self._wanted:
            self._wanted.notify_all()

    def _chosen(self) -> Task | None:
        place = len(self.answers) + len(self._ahead) + 1
        if self._repeat_every and place % self._repeat_every == 0:
            shot = self._to_repeat()
            if shot is not None:
                return Task(shot=shot, clip=self.clips[shot.clip_path])
        one = self._candidates.take()
        return Task(shot=one.shot, clip=one.clip, offer=one.offer) if one else None

    def _to_repeat(self) -> Shot | None:
        """A pair that others have named and this annotator has not, else one of the own."""
        mine = Counter(answer.shot.pair_id for answer in self.answers)
        ahead = {task.shot.pair_id for task in self._ahead}
        others = (answer for answers in self._others.values() for answer in answers)
        far = self.answers[: max(0, len(self.answers) - _LEAST_GAP)]
        for answers, times in ((others, 0), (far, 1)):
            for answer in answers:
                pair, known = answer.shot.pair_id, answer.shot.clip_path in self.clips
                fits = self._audit.counts(answer) if self._audit else not answer.label
                ours = known and fits and answer.kind == "action"
                if ours and mine[pair] == times and pair not in ahead:
                    return answer.shot
        return None

    def _changed(self) -> None:
        self._fill()
        self._dirty.set()

    def _prepare(self) -> None:
        """Decode the pairs that come next."""
        while not self._ended:
            with self._lock:
                tasks = list(self._ahead)
            try:
                for task in tasks:
                    self._films.of(task)
            except Exception:
                if self._ended:  # and the decoders with it
                    return
                raise
            with self._wanted:
                self._wanted.wait(timeout=1.0)

    def _keep_written(self) -> None:
        """Write the table again after answers, for at most a part of the time."""
        while not self._ended:
            self._dirty.wait()
            self._dirty.clear()
            began = time.monotonic()
            # What goes wrong is said at the end, when it is written again; no answer depends on it.
            with suppress(UserError, OSError):
                write_labels(self._out, self._folder)
            spent_s = time.monotonic() - began
            deadline = time.monotonic() + max(_QUIET_S, _QUIET_TIMES * spent_s)
            while not self._ended and time.monotonic() < deadline:
                time.sleep(0.05)


@contextmanager
def open_session(
    folder: Place,
    source: str,
    out: Path,
    who: str,
    keyframes: KeyframeConfig,
    namer: Namer | None = None,
    repeat_every: int = 10,
    audit: Audit | None = None,
) -> Iterator[Session]:
    """A session over the clips of a folder, which ends with the body.

    Args:
        folder: of the clips.
        source: key of `SOURCES`.
        out: the labelled set.
        who: the annotator.
        keyframes: which frames become pairs.
        namer: a run's IDM.
        repeat_every: see `Session`.
        audit: accepted labels that are asked about instead of the folder's pairs.

    Raises:
        UserError: no clips, a damaged file of answers, ``who`` is answering already, or an audit
            without any clip of its labels.
    """
    found = [one for one in SOURCES[source](folder) if isinstance(one, Clip)]
    clips = {clip.name: clip for clip in sorted(found, key=lambda clip: stable_hash(clip.name))}
    pool = PoolConfig(path=folder, keyframes=keyframes)
    journal = Journal(answers_folder(out) / f"{who}.jsonl")
    frame_px, bars = (namer.images.frame_px, namer.images.bars) if namer else (_FRAME_PX, None)
    read = ClipReader(
        spec=DecodeSpec(frame_px=frame_px, bars=bars, **keyframes.model_dump()),
        memory_mb=pool.decode_memory_mb,
        timeout_s=pool.decode_timeout_s,
        cpu_per_s=pool.decode_cpu_per_s,
    )
    # Pairs that others have named are asked about only to measure agreement.
    everybody = chain(journal.answers, *all_answers(answers_folder(out)).values())
    known = [
        one.shot
        for one in everybody
        if (one.who == who or one.kind == "action") and (audit is None or audit.counts(one))
    ]
    candidates = (
        audit.drawn(clips, known) if audit else Candidates(list(clips.values()), read, known, namer)
    )
    films = Films(pool.decode_memory_mb, pool.decode_timeout_s)
    round_id = namer.round if namer else None
    session = Session(out, journal, who, clips, candidates, films, round_id, repeat_every, audit)
    session.start()
    try:
        yield session
    finally:
        session.end()
        close_decoders()


def answers_folder(out: Path) -> Path:
    """The folder of the answers behind a labelled set."""
    return out.with_suffix(".answers")


def _alike(sentence: str) -> str:
    return sentence.casefold().rstrip(".! ")
