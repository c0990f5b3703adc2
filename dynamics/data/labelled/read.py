"""Labelled pairs to units of a table (TRANSITION_SCHEMA).

READ takes the bytes here and decodes them in limited processes; `dynamics.data.units` encodes.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dynamics.core.errors import check_machine
from dynamics.core.images import encode_png
from dynamics.core.places import Place
from dynamics.core.progress import Progress, silent
from dynamics.core.records import PICTURE_SCHEMA, TRANSITION_SCHEMA, pair_id, stable_hash
from dynamics.data.labelled.listing import LabelledPair, Segment, Stills
from dynamics.data.labelled.mirror import mirrored
from dynamics.data.labelled.paths import Refused
from dynamics.data.units import (
    Encoding,
    Unit,
    UnitFolder,
    cut_units,
    made_units,
    read_schema,
    unit_size,
)
from dynamics.data.video.decode import Bars, Ends
from dynamics.data.video.keyframes import change
from dynamics.data.video.sandbox import DecodeWorker, Rejected, decoder
from dynamics.storage.files import local_copy, sha256_file
from dynamics.storage.pairs import stored_schema
from dynamics.storage.streams import RunStream, run_stream


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledRows:
    """The usable pairs of a set."""

    table: pa.Table
    """TRANSITION_SCHEMA, in stored form (`dynamics.storage.pairs`)."""
    digests: Set[str]
    """sha256 of every video and picture behind the rows."""
    rejects: Sequence[tuple[str, str]]
    """(name, reason) of pairs that could not be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairReader:
    """Reads labelled pairs in this process' decode workers."""

    frame_px: int
    bars: Bars
    memory_mb: int
    timeout_s: float
    cpu_per_s: float = 5.0
    mirror: Mapping[str, str] | None = None
    """Words that change places in the mirrored pair that each pair gets beside it; None = none."""

    def __call__(self, unit: Unit[LabelledPair]) -> pa.Table:
        """The pairs of a unit, as `read_schema` has them."""
        with decoder(self.memory_mb, self.timeout_s, self.cpu_per_s) as worker:
            rows = [self._row(pair, worker) for pair in unit.entries]
        return pa.Table.from_pylist(rows, read_schema(TRANSITION_SCHEMA))

    def _row(self, pair: LabelledPair, worker: DecodeWorker) -> dict[str, Any]:
        try:
            digest, digests = file_digests(pair.frames)
        except OSError as error:
            check_machine(error)
            return _rejected("missing_video")
        except Refused as error:
            return _rejected(str(error))
        ends = self._ends(pair.frames, worker)
        if isinstance(ends, Rejected):
            return _rejected(ends.reason)
        if np.array_equal(*ends.frames):
            return _rejected("no_change")
        row: dict[str, Any] = {
            # A pair with several sentences has a row for each.
            "pair_id": stable_hash(pair_id(digest, *ends.indices), pair.action),
            "clip_sha256": digest,
            "clip_path": pair.name,
            "clip_class": pair.clip_class,
            "frame0": ends.indices[0],
            "frame1": ends.indices[1],
            "t0_s": ends.times_s[0],
            "t1_s": ends.times_s[1],
            "motion": float(change(ends.frames[:1], ends.frames[1:])[0]),
            "action": pair.action,
            "origin": "labelled",
            "source": 0,
            "target": 1,
        }
        rows, frames = [row], ends.frames
        if self.mirror is not None:
            twin = {"pair_id": stable_hash(row["pair_id"], "mirrored"), "source": 2, "target": 3}
            rows.append(row | twin | {"action": mirrored(pair.action, self.mirror)})
            frames = np.concatenate([frames, frames[:, :, ::-1]])
        found = {"pair": row["pair_id"], "digests": sorted(digests), "rows": len(rows)}
        return {"verdict": json.dumps(found), "frames": frames.tobytes(), "pairs": rows}

    def _ends(self, frames: Stills | Segment, worker: DecodeWorker) -> Ends | Rejected:
        if isinstance(frames, Segment):
            return worker.segment(local_copy(frames.path), frames.span_s, self.frame_px, self.bars)
        payloads = (frames.source.read(), frames.target.read())
        return worker.pictures(*payloads, self.frame_px, self.bars)


def read_pairs(
    pairs: Sequence[LabelledPair],
    wanted: int,
    fits: Callable[[str], bool],
    read: PairReader,
    units: UnitFolder,
    encoding: Encoding,
    *,
    heldout_digests: Set[str] = frozenset(),
    part_pairs: int | None = None,
    what: str = "pairs",
    run: RunStream = run_stream,
    progress: Progress = silent,
) -> LabelledRows:
    """The first ``wanted`` usable pairs, as a table.

    Args:
        pairs: in the order in which they are tried.
        wanted: at most so many rows.
        fits: whether an action sentence fits the model's prompts.
        read: reads the pictures and videos.
        units: the units of the set.
        encoding: encodes the frames.
        heldout_digests: sha256 of the held-out set's files, which must not be used again.
        part_pairs: pairs of a unit, see `unit_size`.
        what: name of the set in progress messages.
        run: runs the work.
        progress: called with the number of pairs that were tried.

    Returns:
        Rows in the order of ``pairs``. Besides the decoder's reasons a reject has ``action_tokens``
        (the sentence is too long for the model), ``in_heldout``, ``no_change`` (both frames are the
        same), ``duplicate_pair``, or what `Picture.read` refuses.
    """
    usable = _Usable(heldout_digests)
    size = unit_size(part_pairs, 6 * read.frame_px**2)
    start = 0
    while start < len(pairs) and usable.count < wanted:
        stop = min(len(pairs), start + wanted - usable.count)
        tried = [pair for pair in pairs[start:stop] if fits(pair.action)]
        usable.rejects += [
            (pair.name, "action_tokens") for pair in pairs[start:stop] if not fits(pair.action)
        ]
        # In the order of the manifest: neighbours share a table's row group, or a video.
        order = sorted(range(len(tried)), key=lambda index: tried[index].place)
        made = made_units(
            partial(_cut, [tried[index] for index in order], size, read),
            read,
            units,
            encoding,
            run,
            progress,
            what=f"read {what}",
            total=len(tried),
        )
        usable.take(tried, order, made)
        start = stop
    return usable.rows()


def shown_pictures(
    pairs: Sequence[LabelledPair], rows: pa.Table, read: PairReader, most: int = 16
) -> pa.Table:
    """Real frames (PICTURE_SCHEMA) of the first rows that `read_pairs` made of ``pairs``."""
    wanted = set(rows["pair_id"].to_pylist()[:most])
    found: dict[str, dict[str, Any]] = {}
    shape = (2, read.frame_px, read.frame_px, 3)
    for start in range(0, len(pairs), most):
        if len(found) == len(wanted):
            break
        for row in read(Unit(key="", entries=tuple(pairs[start : start + most]))).to_pylist():
            pair_ids = [one["pair_id"] for one in row["pairs"]]
            for pair in wanted.intersection(pair_ids):
                ends = np.frombuffer(row["frames"], np.uint8).reshape(shape)
                source, target = map(encode_png, ends)
                found[pair] = {"pair_id": pair, "source": source, "target": target}
    return pa.Table.from_pylist(list(found.values()), PICTURE_SCHEMA)


class _Usable:
    """Gathers the rows of the usable pairs."""

    def __init__(self, heldout_digests: Set[str]) -> None:
        self._heldout_digests = heldout_digests
        self._seen: set[str] = set()
        self._digests: set[str] = set()
        self._tables = [stored_schema(TRANSITION_SCHEMA).empty_table()]
        self.rejects: list[tuple[str, str]] = []
        self.count = 0

    def take(
        self,
        tried: Sequence[LabelledPair],
        order: Sequence[int],
        made: Iterator[tuple[pa.Table, list[dict[str, Any]]]],
    ) -> None:
        """Take rows of pairs, which were read in ``order``, as they were tried."""
        tables, verdicts = [stored_schema(TRANSITION_SCHEMA).empty_table()], []
        for rows, found in made:
            tables.append(rows)
            verdicts += found
        starts = np.cumsum([0, *(verdict["rows"] for verdict in verdicts)])
        place = {index: number for number, index in enumerate(order)}
        kept: list[int] = []
        for index, pair in enumerate(tried):
            verdict = verdicts[place[index]]
            if reason := self._unusable(verdict):
                self.rejects.append((pair.name, reason))
            else:
                kept += range(starts[place[index]], starts[place[index] + 1])
                self.count += 1
        self._tables.append(pa.concat_tables(tables).take(pa.array(kept, pa.int64())))

    def _unusable(self, verdict: dict[str, Any]) -> str:
        """The reject reason of a pair; "" for a usable one, which is remembered."""
        if "reason" in verdict:
            return str(verdict["reason"])
        if not self._heldout_digests.isdisjoint(verdict["digests"]):
            return "in_heldout"
        if verdict["pair"] in self._seen:
            return "duplicate_pair"
        self._seen.add(verdict["pair"])
        self._digests.update(verdict["digests"])
        return ""

    def rows(self) -> LabelledRows:
        table = pa.concat_tables(self._tables)
        return LabelledRows(table=table, digests=self._digests, rejects=self.rejects)


def _cut(
    pairs: Sequence[LabelledPair], size: int, read: PairReader
) -> Iterator[Unit[LabelledPair]]:
    return cut_units(pairs, size, partial(_described, read))


def _described(read: PairReader, pair: LabelledPair) -> Sequence[str | int]:
    frames = pair.frames
    if isinstance(frames, Segment):
        files = [str(frames.path), str(frames.span_s), _version(frames.path)]
    else:
        pictures = (frames.source, frames.target)
        files = [text for one in pictures for text in (one.name, _version(one.path))]
    twins = [] if read.mirror is None else [repr(sorted(read.mirror.items()))]
    return (pair.name, pair.action, pair.clip_class, *files, read.frame_px, str(read.bars), *twins)


def _version(path: Place) -> str:
    """Another one when the file's bytes have changed."""
    try:
        if not isinstance(path, Path):
            return str(path.meta()["e_tag"])
        status = path.stat()
    except OSError:
        return ""
    return f"{status.st_size}-{status.st_mtime_ns}"


def _rejected(reason: str) -> dict[str, Any]:
    verdict = json.dumps({"reason": reason, "rows": 0})
    return {"verdict": verdict, "frames": b"", "pairs": []}


def file_digests(frames: Stills | Segment) -> tuple[str, frozenset[str]]:
    """The digest of a pair's files, as the tables have it, and those of the single files.

    Raises:
        OSError: the video cannot be read.
        Refused: a picture cannot be read.
    """
    if isinstance(frames, Segment):
        digest = _video_sha256(frames.path, _version(frames.path))
        return digest, frozenset({digest})
    digests = [
        hashlib.sha256(picture.read()).hexdigest() for picture in (frames.source, frames.target)
    ]
    return hashlib.sha256("\x1f".join(digests).encode()).hexdigest(), frozenset(digests)


@lru_cache(4096)
def _video_sha256(path: Place, version: str) -> str:
    """Long videos have many segments: hashed once a process, and again in another version."""
    return sha256_file(local_copy(path))
