"""Labelled pairs to rows of TRANSITION_SCHEMA: bytes read here, decoded in limited processes.

P pairs of a batch, L codes a frame.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from dynamics.core.progress import Progress, silent
from dynamics.core.records import TRANSITION_SCHEMA, pair_id, stable_hash
from dynamics.data.labelled.listing import LabelledPair, Segment, Stills
from dynamics.data.labelled.paths import Refused
from dynamics.data.video.decode import Ends
from dynamics.data.video.ingest import batch_frames, code_columns
from dynamics.data.video.keyframes import change
from dynamics.data.video.sandbox import DecodePool, DecodeWorker, Rejected
from dynamics.models.image_tokenizer import ImageTokenizer
from dynamics.storage.files import sha256_file


@dataclass(frozen=True, slots=True, kw_only=True)
class _Read:
    """A pair with its pixels."""

    pair: LabelledPair
    ends: Ends
    clip_sha256: str
    digests: frozenset[str]
    """sha256 of the files that its frames come from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledRows:
    """The usable pairs of a set."""

    table: pa.Table
    """TRANSITION_SCHEMA."""
    digests: Set[str]
    """sha256 of every video and picture behind the rows."""
    rejects: Sequence[tuple[str, str]]
    """(name, reason) of pairs that could not be used."""


def read_pairs(
    pairs: Sequence[LabelledPair],
    wanted: int,
    images: ImageTokenizer,
    fits: Callable[[str], bool],
    decoders: DecodePool,
    *,
    heldout_digests: Set[str] = frozenset(),
    what: str = "pairs",
    progress: Progress = silent,
) -> LabelledRows:
    """The first ``wanted`` usable pairs, as a table.

    Args:
        pairs: in the order in which they are tried.
        wanted: at most so many rows.
        images: tokenizes the frames.
        fits: whether an action sentence fits the model's prompts.
        decoders: decode the pictures and videos.
        heldout_digests: sha256 of the held-out set's files, which must not be used again.
        what: name of the set in progress messages.
        progress: called with the number of usable pairs.

    Returns:
        Rows in the order of ``pairs``. Besides the decoder's reasons a reject has ``action_tokens``
        (the sentence is too long for the model), ``in_heldout``, ``no_change`` (both frames are the
        same), ``duplicate_pair``, or what `Picture.read` refuses.
    """
    reader = _Reader(images, fits, decoders, heldout_digests)
    start = 0
    while start < len(pairs) and len(reader.order) < wanted:
        stop = min(len(pairs), start + wanted - len(reader.order))
        # In the order of the manifest: neighbours share a table's row group, or a video.
        part = sorted(range(start, stop), key=lambda index: pairs[index].place)
        for _ in reader.read([(index, pairs[index]) for index in part]):
            progress(len(reader.order), wanted, f"read {what}")
        start = stop
    return reader.rows()


class _Reader:
    """Gathers the rows of the usable pairs."""

    def __init__(
        self,
        images: ImageTokenizer,
        fits: Callable[[str], bool],
        decoders: DecodePool,
        heldout_digests: Set[str],
    ) -> None:
        self._images = images
        self._fits = fits
        self._decoders = decoders
        self._heldout_digests = heldout_digests
        self._videos: dict[Path, str] = {}
        self._seen: set[str] = set()
        self._digests: set[str] = set()
        self._rejects: list[tuple[str, str]] = []
        self._tables = [TRANSITION_SCHEMA.empty_table()]
        self.order: list[int] = []
        """Numbers of the usable pairs, in the order of the rows."""

    def read(self, pairs: Sequence[tuple[int, LabelledPair]]) -> Iterator[None]:
        """Read pairs; yields after each of them."""
        waiting: list[_Read] = []
        jobs = [self._job(pair) for _, pair in pairs]
        for (index, pair), result in zip(pairs, self._decoders.run(jobs), strict=True):
            reason = result if isinstance(result, str) else self._unusable(result)
            if isinstance(result, str) or reason:
                self._rejects.append((pair.name, reason))
            else:
                self._digests |= result.digests
                self.order.append(index)
                waiting.append(result)
                if 2 * len(waiting) >= batch_frames(self._images):
                    self._tables.append(_table(waiting, self._images))
                    waiting = []
            yield
        if waiting:
            self._tables.append(_table(waiting, self._images))

    def rows(self) -> LabelledRows:
        table = pa.concat_tables(self._tables).take(np.argsort(self.order, kind="stable"))
        return LabelledRows(table=table, digests=self._digests, rejects=self._rejects)

    def _job(self, pair: LabelledPair) -> Callable[[DecodeWorker], _Read | str]:
        if not self._fits(pair.action):
            return lambda _: "action_tokens"
        if isinstance(pair.frames, Segment):
            return partial(_read_segment, pair, pair.frames, self._videos, self._images)
        return partial(_read_stills, pair, pair.frames, self._images)

    def _unusable(self, read: _Read) -> str:
        """The reject reason of a decoded pair; "" for a usable one, which is remembered."""
        if not read.digests.isdisjoint(self._heldout_digests):
            return "in_heldout"
        if np.array_equal(*read.ends.frames):
            return "no_change"
        key = _labelled_id(read)
        if key in self._seen:
            return "duplicate_pair"
        self._seen.add(key)
        return ""


def _read_segment(
    pair: LabelledPair,
    segment: Segment,
    known: dict[Path, str],
    images: ImageTokenizer,
    worker: DecodeWorker,
) -> _Read | str:
    try:
        # Long videos have many segments: hashed once (twice at worst, by two threads).
        digest = known.get(segment.path) or sha256_file(segment.path)
    except OSError:
        return "missing_video"
    known[segment.path] = digest
    ends = worker.segment(segment.path, segment.span_s, images.frame_px, images.bars)
    if isinstance(ends, Rejected):
        return ends.reason
    return _Read(pair=pair, ends=ends, clip_sha256=digest, digests=frozenset({digest}))


def _read_stills(
    pair: LabelledPair, stills: Stills, images: ImageTokenizer, worker: DecodeWorker
) -> _Read | str:
    try:
        payloads = (stills.source.read(), stills.target.read())
    except Refused as error:
        return str(error)
    ends = worker.pictures(*payloads, images.frame_px, images.bars)
    if isinstance(ends, Rejected):
        return ends.reason
    digests = [hashlib.sha256(payload).hexdigest() for payload in payloads]
    return _Read(pair=pair, ends=ends, clip_sha256=_both(digests), digests=frozenset(digests))


def clip_sha256(frames: Stills | Segment) -> str:
    """The digest of a pair's files, as the tables have it.

    Raises:
        OSError: the video cannot be read.
        Refused: a picture cannot be read.
    """
    if isinstance(frames, Segment):
        return sha256_file(frames.path)
    pictures = (frames.source, frames.target)
    return _both([hashlib.sha256(picture.read()).hexdigest() for picture in pictures])


def _both(digests: Sequence[str]) -> str:
    return hashlib.sha256("\x1f".join(digests).encode()).hexdigest()


def _labelled_id(read: _Read) -> str:
    """Key of a row; a pair with several sentences has a row for each."""
    return stable_hash(pair_id(read.clip_sha256, *read.ends.indices), read.pair.action)


def _table(reads: Sequence[_Read], images: ImageTokenizer) -> pa.Table:
    frames_BHW3 = np.concatenate([read.ends.frames for read in reads])
    sources = range(0, len(frames_BHW3), 2)
    motion_P = change(frames_BHW3[0::2], frames_BHW3[1::2])
    columns = code_columns(frames_BHW3, sources, [row + 1 for row in sources], images)
    rows = [
        {
            "pair_id": _labelled_id(read),
            "clip_sha256": read.clip_sha256,
            "clip_path": read.pair.name,
            "clip_class": read.pair.clip_class,
            "frame0": read.ends.indices[0],
            "frame1": read.ends.indices[1],
            "t0_s": read.ends.times_s[0],
            "t1_s": read.ends.times_s[1],
            "motion": float(motion),
            "action": read.pair.action,
            "origin": "labelled",
        }
        for read, motion in zip(reads, motion_P, strict=True)
    ]
    small = [column for column in TRANSITION_SCHEMA if column.name not in columns]
    table = pa.Table.from_pylist(rows, schema=pa.schema(small))
    for name, column in columns.items():
        table = table.append_column(TRANSITION_SCHEMA.field(name), column)
    return table.select(TRANSITION_SCHEMA.names)
