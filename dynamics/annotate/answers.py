"""Answers of annotators, and the labelled set that they make.

    labels.answers/ana.jsonl     what ana answered, a line each, on the disk before the next pair
    labels.answers/frames/       the two frames of every pair that has a sentence, as PNG
    labels.parquet               the labelled set, made of the two again and again

Lines are only ever added; taking an answer back is a line, too. A line that a kill has cut off was
never acknowledged: it is dropped. Several people may answer at the same time, each in a file of
their own.
"""

import errno
import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import combinations
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from dynamics.core.errors import UserError
from dynamics.storage.files import full_disk_named, make_folder, name_flushed, write_bytes
from dynamics.storage.sealed import seal, unsealed

Kind = Literal["action", "no_change", "unsure", "skip"]
ENDS = ("source", "target")
_ROWS_PER_GROUP = 64
"""Pictures of so many pairs are in memory at a time."""
LABELS_SCHEMA = pa.schema(
    [
        pa.field("source_image", pa.binary(), nullable=False),  # PNG
        pa.field("target_image", pa.binary(), nullable=False),
        pa.field("action", pa.string(), nullable=False),
        pa.field("clip_path", pa.string(), nullable=False),  # below the folder of clips
        pa.field("clip_class", pa.string(), nullable=False),
        pa.field("pair_id", pa.string(), nullable=False),  # as ingest names the pair
        pa.field("frame0", pa.int32(), nullable=False),
        pa.field("frame1", pa.int32(), nullable=False),
        pa.field("t0_s", pa.float64(), nullable=False),
        pa.field("t1_s", pa.float64(), nullable=False),
        pa.field("who", pa.list_(pa.string()), nullable=False),  # those who said so
        pa.field("when", pa.timestamp("ms", "UTC"), nullable=False),  # the newest of their answers
        pa.field("round", pa.int32()),  # of the run that offered a sentence; null without a run
        pa.field("num_annotators", pa.int32(), nullable=False),  # those who named the pair
    ]
)
"""The labelled set: what `dynamics.data.labelled.table` reads, and where every label comes from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """A pair of frames of a clip, as it is asked about."""

    pair_id: str
    clip_path: str
    clip_class: str
    frame0: int
    frame1: int
    t0_s: float
    t1_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What somebody said about a pair."""

    shot: Shot
    who: str
    when: str
    """UTC, ISO 8601."""
    kind: Kind
    action: str = ""
    """The sentence of kind ``action``."""
    offered: str = ""
    """The sentence that the run's IDM had offered."""
    round: int | None = None
    """The round of that IDM."""
    label: str = ""
    """label_id of the accepted label, not shown, for whose audit the pair was drawn at random."""


class Journal:
    """The answers of one annotator, who alone writes to it."""

    def __init__(self, path: Path) -> None:
        make_folder(path.parent)
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lines = path.read_bytes()
            os.ftruncate(self._file, lines.rfind(b"\n") + 1)  # what a kill has cut off
            self.answers = list(_replayed(path))
        except BlockingIOError as error:
            self.close()
            raise UserError(
                f"{path.stem} is answering in another process; end that one, or give another --name"
            ) from error
        except BaseException:
            self.close()
            raise
        name_flushed(path, path)  # a new file's name, too, survives a power loss

    def append(self, answer: Answer) -> None:
        """Add an answer; it is on the disk when this returns."""
        self._write(asdict(answer))
        self.answers.append(answer)

    def undo(self) -> Answer:
        """Take the last answer back."""
        self._write({"undo": True})
        return self.answers.pop()

    def _write(self, content: dict[str, object]) -> None:
        line = (json.dumps(seal(content), ensure_ascii=False) + "\n").encode()
        size = os.fstat(self._file).st_size
        try:
            with full_disk_named(self._path, len(line)):
                if os.write(self._file, line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(self._file)
        except BaseException:
            os.ftruncate(self._file, size)  # the next line must not grow onto half of this one
            raise

    def close(self) -> None:
        """Let somebody else write."""
        os.close(self._file)


def _replayed(path: Path) -> Iterator[Answer]:
    """The answers of a file that were not taken back."""
    kept: list[Answer] = []
    *lines, _ = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            content = unsealed(json.loads(line))
            if content.get("undo"):
                kept.pop()
            else:
                kept.append(Answer(**content | {"shot": Shot(**content["shot"])}))
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise UserError(
                f"{path} line {number} is damaged; restore the file from a copy, or remove the line"
            ) from error
    return iter(kept)


def all_answers(folder: Path) -> dict[str, list[Answer]]:
    """Everybody's answers, by name."""
    return {path.stem: list(_replayed(path)) for path in sorted(folder.glob("*.jsonl"))}


def keep_frames(folder: Path, pair_id: str, pngs: Sequence[bytes]) -> None:
    """Keep the two frames of a pair, durably."""
    make_folder(folder / "frames")
    for end, png in zip(ENDS, pngs, strict=True):
        path = _frame(folder, pair_id, end)
        if not path.exists():
            write_bytes(path, png)


def _frame(folder: Path, pair_id: str, end: str) -> Path:
    return folder / "frames" / f"{pair_id}-{end}.png"


def newest(answers: Iterable[Answer]) -> dict[str, Answer]:
    """The newest answer about each pair."""
    return {answer.shot.pair_id: answer for answer in answers}


def agreed(by_name: Mapping[str, Sequence[Answer]]) -> list[list[Answer]]:
    """What most of those who named a pair say, of equally many what was said first.

    The answers that say so, in the order in which the pairs were first named.
    """
    named: dict[str, list[Answer]] = {}
    for answers in by_name.values():
        for pair, answer in newest(answers).items():
            if answer.kind in ("action", "no_change"):
                named.setdefault(pair, []).append(answer)
    found = []
    for answers in named.values():
        answers.sort(key=lambda answer: answer.when)
        (winner, _), *_ = Counter((one.kind, one.action) for one in answers).most_common(1)
        found.append([one for one in answers if (one.kind, one.action) == winner])
    return sorted(found, key=lambda one: (one[0].when, one[0].shot.pair_id))


def write_labels(path: Path, folder: Path) -> int:
    """Write the labelled set of all answers in ``folder``; returns its rows.

    Raises:
        UserError: a damaged file, or a full disk.
    """
    by_name = all_answers(folder)
    named = Counter(
        pair
        for answers in by_name.values()
        for pair, answer in newest(answers).items()
        if answer.kind in ("action", "no_change")
    )
    # Where people agree that nothing changes, a pair has no label.
    found = [answers for answers in agreed(by_name) if answers[0].kind == "action"]
    fresh = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with pq.ParquetWriter(fresh, LABELS_SCHEMA, compression="zstd") as writer:
            for start in range(0, len(found), _ROWS_PER_GROUP):
                rows = [_row(folder, agreed, named) for agreed in found[start:][:_ROWS_PER_GROUP]]
                writer.write_table(pa.Table.from_pylist(rows, LABELS_SCHEMA))
        name_flushed(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
    return len(found)


def _row(folder: Path, agreed: Sequence[Answer], named: Counter[str]) -> dict[str, object]:
    last, shot = agreed[-1], asdict(agreed[-1].shot)
    pictures = {f"{end}_image": _frame(folder, last.shot.pair_id, end).read_bytes() for end in ENDS}
    return {
        **pictures,
        **shot,
        "action": last.action,
        "who": [one.who for one in agreed],
        "when": datetime.fromisoformat(last.when),
        "round": last.round,
        "num_annotators": named[last.shot.pair_id],
    }


@dataclass(frozen=True, slots=True)
class Agreement:
    """How often equal things were said of one pair."""

    same: int
    asked: int
    alpha: float | None = None
    """Krippendorff's alpha: 1 full agreement, 0 that of chance; None: one thing alone was said."""


def with_oneself(answers: Iterable[Answer]) -> Agreement:
    """Agreement of an annotator's answers about pairs that were asked twice."""
    said: dict[str, list[str]] = {}
    for answer in answers:
        if answer.kind in ("action", "no_change"):
            said.setdefault(answer.shot.pair_id, []).append(answer.action)
    return _agreement(said.values())


def with_others(by_name: Mapping[str, Sequence[Answer]]) -> Agreement:
    """Agreement of several annotators' newest answers about pairs that more than one named."""
    said: dict[str, list[str]] = {}
    for answers in by_name.values():
        for pair, answer in newest(answers).items():
            if answer.kind in ("action", "no_change"):
                said.setdefault(pair, []).append(answer.action)
    return _agreement(said.values())


def _agreement(said: Iterable[Sequence[str]]) -> Agreement:
    """Of the sentences about each pair; Krippendorff 2011, nominal data."""
    several = [one for one in said if len(one) > 1]
    counts = Counter(sentence for one in several for sentence in one)
    total = counts.total()
    if not several:
        return Agreement(0, 0)
    differ = sum(
        2 * sum(a != b for a, b in combinations(one, 2)) / (len(one) - 1) for one in several
    )
    by_chance = (total**2 - sum(count**2 for count in counts.values())) / (total - 1)
    return Agreement(
        same=sum(len(set(one)) == 1 for one in several),
        asked=len(several),
        alpha=1 - differ / by_chance if by_chance else None,
    )
