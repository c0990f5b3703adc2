"""Folders of videos to a table of frame pairs with image codes.

    list ─▶ units of clips ─▶ READ: fetch, decode, key frames ─▶ WORK: codes, unit ─▶ table in parts

Units are made anywhere and in any order (`dynamics.data.units`); the driver takes them in the order
of the listing as they come, so that the same folder gives the same table. Everything that is left
out is counted with its reason.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa

from dynamics.core.config import KeyframeConfig, PoolConfig
from dynamics.core.errors import UserError, check_machine
from dynamics.core.places import Place
from dynamics.core.progress import Progress, silent
from dynamics.core.records import PAIR_SCHEMA, DatasetRef, pair_id, stable_hash
from dynamics.data.refusals import SKIPPED, way_out
from dynamics.data.units import (
    Encoding,
    Unit,
    UnitFolder,
    cut_units,
    made_units,
    read_schema,
    unit_size,
)
from dynamics.data.video.decode import ClipFrames, DecodeSpec
from dynamics.data.video.sandbox import (
    DecodeWorker,
    ReadClip,
    Rejected,
    decoder,
    read_clip_file,
    unreadable,
)
from dynamics.data.video.sources import SOURCES, Clip, Found
from dynamics.data.video.unpack import as_file
from dynamics.models.image_tokenizer import ImageTokenizer
from dynamics.storage.pairs import TableWriter
from dynamics.storage.streams import RunStream, run_stream

USABLE = frozenset({"duplicate_clip", "too_short", "in_heldout"})
"""Clip rejects that are no sign of a broken pool."""
_LISTED_AT_ONCE = 200_000
"""Clips in memory while they are put into an order that is not that of their names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """Videos below one folder, and what is taken of them."""

    root: Place
    source: str = "folder"
    """Key of SOURCES."""
    keyframes: KeyframeConfig
    max_pairs: int | None = None
    by_name: bool = False
    """Take the first clips by name when ``max_pairs`` is less than there is; else in the order of a
    hash of their names, so that a part of the folder has clips of all classes."""
    prefix: str = ""
    """Begins the names and classes of its clips."""
    what: str = "pool"
    """Its name in progress messages."""
    without: frozenset[str] = frozenset()
    """Clips that are left out, by name: those behind held-out pairs."""

    def leaves_out(self, clip: Clip) -> bool:
        """True for a clip that must not be used."""
        return not self.without.isdisjoint((clip.name, self.prefix + clip.name))


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedClip:
    """A file that is left out."""

    clip_path: str
    reason: str
    detail: str

    @property
    def is_usable(self) -> bool:
        """True when it is no sign of a broken pool."""
        return self.reason in USABLE or self.reason.startswith(SKIPPED)


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestReport:
    """Counts of a folder."""

    num_clips: int
    """Clips looked at: all of the folder, or fewer when ``max_pairs`` was reached before."""
    num_read: int
    """Clips decoded to the end."""
    num_pairs: int
    in_two_folders: int
    """Pairs, among ``num_pairs``, of clips that an earlier folder has byte for byte."""
    rejects: Counter[str]
    """Counts by reason: ``clip/unreadable`` of clips, ``pair/near_copy`` and so on of pairs."""
    rejected_clips: tuple[RejectedClip, ...]

    def to_json(self) -> dict[str, Any]:
        """A plain dict for JSON, keys in a fixed order."""
        return asdict(self) | {"rejects": dict(sorted(self.rejects.items()))}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipReader:
    """Reads clips in this process' decode workers."""

    spec: DecodeSpec
    memory_mb: int
    timeout_s: float
    cpu_per_s: float = 5.0
    prefix: str = ""
    shown_px: int = 0
    """See `read_clip`; only for `read`."""

    def __call__(self, unit: Unit[Clip]) -> pa.Table:
        """The clips of a unit, as `read_schema` has them."""
        with decoder(self.memory_mb, self.timeout_s, self.cpu_per_s) as worker:
            rows = [self._row(clip, self._read(clip, worker)) for clip in unit.entries]
        return pa.Table.from_pylist(rows, read_schema(PAIR_SCHEMA))

    def read(self, clip: Clip) -> ReadClip:
        """Digest and key frames of a clip; what is wrong with it is a reject."""
        with decoder(self.memory_mb, self.timeout_s, self.cpu_per_s) as worker:
            return self._read(clip, worker)

    def frames(self, clip: Clip) -> Iterator[np.ndarray]:
        """The key frames that a clip's accepted pairs use, uint8 [H, W, 3]; none of a reject."""
        result = self.read(clip).result
        return iter(() if isinstance(result, Rejected) else result.frames)

    def _read(self, clip: Clip, worker: DecodeWorker) -> ReadClip:
        try:
            with as_file(clip) as path:
                return read_clip_file(path, self.spec, worker, self.shown_px)
        except InterruptedError:
            raise
        except OSError as error:
            check_machine(error)
            return unreadable(error)

    def _row(self, clip: Clip, read: ReadClip) -> dict[str, Any]:
        verdict: dict[str, Any] = {"clip": self.prefix + clip.name, "sha256": read.sha256}
        if isinstance(read.result, Rejected):
            verdict |= {"reason": read.result.reason, "detail": read.result.detail, "rows": 0}
            return {"verdict": json.dumps(verdict), "frames": b"", "pairs": []}
        pairs = list(self._pairs(clip, read.sha256, read.result))
        rejects = Counter(pair.verdict for pair in read.result.pairs if pair.verdict != "accepted")
        verdict |= {"rejects": rejects, "rows": len(pairs)}
        frames = read.result.frames.tobytes()
        return {"verdict": json.dumps(verdict), "frames": frames, "pairs": pairs}

    def _pairs(self, clip: Clip, sha256: str, content: ClipFrames) -> Iterator[dict[str, Any]]:
        """The accepted pairs, without codes."""
        place = {index: row for row, index in enumerate(content.indices)}
        for pair in content.pairs:
            if pair.verdict == "accepted":
                source, target = place[pair.source], place[pair.target]
                yield {
                    "pair_id": pair_id(sha256, pair.source, pair.target),
                    "clip_sha256": sha256,
                    "clip_path": self.prefix + clip.name,
                    "clip_class": self.prefix + clip.clip_class,
                    "frame0": pair.source,
                    "frame1": pair.target,
                    "t0_s": content.times_s[source],
                    "t1_s": content.times_s[target],
                    "motion": pair.motion,
                    "source": source,
                    "target": target,
                }


def clip_reader(
    keyframes: KeyframeConfig, pool: PoolConfig, images: ImageTokenizer, prefix: str = ""
) -> ClipReader:
    """A reader with the limits of the config, for frames as the image tokenizer takes them."""
    return ClipReader(
        spec=DecodeSpec(frame_px=images.frame_px, bars=images.bars, **keyframes.model_dump()),
        memory_mb=pool.decode_memory_mb,
        timeout_s=pool.decode_timeout_s,
        cpu_per_s=pool.decode_cpu_per_s,
        prefix=prefix,
    )


def ingest_videos(
    folders: Sequence[Folder],
    out: Place,
    pool: PoolConfig,
    images: ImageTokenizer,
    encoding: Encoding,
    *,
    part_clips: int | None = None,
    run: RunStream = run_stream,
    progress: Progress = silent,
) -> tuple[DatasetRef, list[IngestReport]]:
    """Turn the videos of some folders into one table of frame pairs (PAIR_SCHEMA).

    Rows are in the order of the folders, in them of the clips, in them of the frames. Units of an
    ingest that was killed are not made again.

    Args:
        folders: taken one after the other; of clips with equal bytes the first one counts.
        out: folder of the table; ends in ``.parts``.
        pool: limits.
        images: says how large frames are; it encodes none.
        encoding: encodes them.
        part_clips: clips of a unit, see `unit_size`.
        run: runs the work.
        progress: called with the number of finished clips.

    Returns:
        The table, and the counts of each folder.

    Raises:
        FolderError: more than ``pool.max_bad_fraction`` unreadable clips, or no pair at all.
        UserError: missing or empty folder, or a full disk.
    """
    units = UnitFolder(out / "units", PAIR_SCHEMA)
    writer = TableWriter(out, PAIR_SCHEMA, encoding.codes)
    known: set[bytes] = set()
    reports = []
    for folder in folders:
        read = clip_reader(folder.keyframes, pool, images, folder.prefix)
        size = unit_size(part_clips, 3 * images.frame_px**2 * folder.keyframes.top_k)
        taken = _Taken(folder, writer, known)

        def cut(taken: _Taken = taken, read: ClipReader = read, size: int = size) -> Units:
            return cut_units(taken.clips(), size, partial(_described, read))

        for rows, verdicts in made_units(
            cut,
            read,
            units,
            encoding,
            run,
            progress,
            what=f"ingest {folder.what}",
            total=taken.num_listed,
        ):
            taken.add(rows, verdicts)
            if taken.full:
                break
        known |= taken.seen
        reports.append(taken.report(pool.max_bad_fraction))
    table = writer.finish()
    units.remove()
    return table, reports


Units = Iterator[Unit[Clip]]


def _described(read: ClipReader, clip: Clip) -> Sequence[str | int]:
    place = clip.place or ()
    return (read.prefix + clip.name, clip.clip_class, clip.version, *place, repr(read.spec))


class FolderError(UserError):
    """One line about a folder of which too little can be used."""

    def __init__(self, report: IngestReport, detail: str) -> None:
        super().__init__(detail)
        self.report = report


class _Taken:
    """What is taken of a folder, and what is left out."""

    def __init__(self, folder: Folder, writer: TableWriter, known: set[bytes]) -> None:
        self._folder = folder
        self._writer = writer
        self._known = known
        """Digests of the clips of earlier folders."""
        self.seen: set[bytes] = set()
        self._rejected: list[RejectedClip] = []
        self._pair_rejects: Counter[str] = Counter()
        self._num_clips = self._num_read = self._num_pairs = self._in_two_folders = 0
        self.num_listed = 0
        for found in self._listing():
            if isinstance(found, Clip) and folder.leaves_out(found):
                self._num_clips += 1
                self._reject(folder.prefix + found.name, "in_heldout", "")
            elif isinstance(found, Clip):
                self.num_listed += 1
            else:
                self._num_clips += not found.is_other
                self._reject(folder.prefix + found.name, found.reason, "")

    def _listing(self) -> Iterator[Found]:
        return SOURCES[self._folder.source](self._folder.root)

    def _wanted(self) -> Iterator[Clip]:
        clips = (found for found in self._listing() if isinstance(found, Clip))
        return (clip for clip in clips if not self._folder.leaves_out(clip))

    def clips(self) -> Iterator[Clip]:
        """The clips in the order in which they are taken; a part of them is in memory."""
        folder = self._folder
        most_pairs = self.num_listed * (folder.keyframes.top_k - 1)
        clips = self._wanted()
        if folder.by_name or folder.max_pairs is None or most_pairs <= folder.max_pairs:
            yield from clips
            return
        passes = -(-self.num_listed // _LISTED_AT_ONCE)
        for number in range(passes):
            hashed = ((stable_hash(clip.name), clip) for clip in self._wanted())
            part = [one for one in hashed if int(one[0][:8], 16) * passes >> 32 == number]
            yield from (clip for _, clip in sorted(part, key=itemgetter(0)))

    @property
    def full(self) -> bool:
        """True when there are as many pairs as shall be taken."""
        return self._folder.max_pairs is not None and self._num_pairs >= self._folder.max_pairs

    def add(self, rows: pa.Table, verdicts: list[dict[str, Any]]) -> None:
        """Take a unit's rows, in stored form, as far as they are wanted."""
        kept, stop = [rows.slice(0, 0)], 0
        for verdict in verdicts:
            start, stop = stop, stop + verdict["rows"]
            if self.full:
                break
            if self._is_new(verdict):
                part = rows.slice(start, stop - start)
                if self._folder.max_pairs is not None:
                    part = part.slice(0, self._folder.max_pairs - self._num_pairs)
                self._num_pairs += part.num_rows
                if _short(verdict) in self._known:
                    self._in_two_folders += part.num_rows
                else:
                    kept.append(part)
        self._writer.append(pa.concat_tables(kept))

    def _is_new(self, verdict: dict[str, Any]) -> bool:
        """Count a clip; True when it was read and is not in this folder under another name."""
        self._num_clips += 1
        if "reason" in verdict:
            self._reject(verdict["clip"], verdict["reason"], verdict["detail"])
            return False
        self._num_read += 1
        if _short(verdict) in self.seen:
            self._reject(verdict["clip"], "duplicate_clip", "the same bytes under another name")
            return False
        self.seen.add(_short(verdict))
        self._pair_rejects.update(verdict["rejects"])
        return True

    def _reject(self, name: str, reason: str, detail: str) -> None:
        self._rejected.append(RejectedClip(clip_path=name, reason=reason, detail=detail))

    def report(self, max_bad_fraction: float) -> IngestReport:
        """The counts; raises instead of going on with a shrunken or an empty folder."""
        rejected = sorted(self._rejected, key=lambda reject: reject.clip_path)
        rejects = Counter(f"clip/{reject.reason}" for reject in rejected)
        rejects.update({f"pair/{name}": count for name, count in self._pair_rejects.items()})
        counts = IngestReport(
            num_clips=self._num_clips,
            num_read=self._num_read,
            num_pairs=self._num_pairs,
            in_two_folders=self._in_two_folders,
            rejects=rejects,
            rejected_clips=tuple(rejected),
        )
        bad = [reject for reject in rejected if not reject.is_usable]
        if len(bad) > max_bad_fraction * self._num_clips:
            raise FolderError(
                counts,
                f"{len(bad)} of {self._num_clips} clips in {self._folder.root} cannot be read, "
                f"e.g. {bad[0].clip_path}: {bad[0].reason}{way_out(bad[0].reason)}; mend or remove "
                f"them, or raise pool.max_bad_fraction (of ingest: --max-bad), now "
                f"{max_bad_fraction}",
            )
        if not self._num_pairs:
            listed = ", ".join(f"{reason} {count}" for reason, count in sorted(rejects.items()))
            raise FolderError(
                counts,
                f"no frame pairs in the {self._num_clips} clips of {self._folder.root} (rejected: "
                f"{listed}); see pool.keyframes: spacing_frames, min_change and max_cut (of "
                "ingest: --spacing, --min-change, --max-cut)",
            )
        return counts


def _short(verdict: dict[str, Any]) -> bytes:
    """Half of the clip's digest: pools have millions of clips."""
    return bytes.fromhex(verdict["sha256"])[:16]
