"""A folder of videos to a table of frame pairs with image codes.

    files ─▶ decode, key frames, crop (workers) ─▶ codes, recognition (here, batched) ─▶ Parquet

Everything that is left out is counted with its reason. The same folder gives the same bytes.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from dynamics.core.config import KeyframeConfig, PoolConfig
from dynamics.core.errors import UserError
from dynamics.core.places import Place
from dynamics.core.progress import Progress, silent
from dynamics.core.records import PAIR_SCHEMA, DatasetRef, pair_id, stable_hash
from dynamics.data.video.decode import ClipFrames, DecodeSpec
from dynamics.data.video.sandbox import DecodePool, Rejected
from dynamics.data.video.sources import SOURCES, Clip, Listing
from dynamics.data.video.unpack import Unpacked
from dynamics.models.image_tokenizer import ImageTokenizer
from dynamics.storage.files import local_copy, local_state
from dynamics.storage.pairs import write_pairs
from dynamics.storage.tables import write_table

USABLE = frozenset({"duplicate_clip", "too_short"})
"""Clip rejects that are no sign of a broken pool."""
_PIXELS_PER_BATCH = 1 << 20
"""Frames are tokenized in batches of about this many pixels: 1024 of 32 px, 4 of 512 px."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedClip:
    """A clip that cannot be used."""

    clip_path: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestReport:
    """Result and counts of an ingest."""

    dataset: DatasetRef
    """PAIR_SCHEMA."""
    num_clips: int
    """Clips looked at: all of the folder, or fewer when ``max_pairs`` was reached before."""
    num_read: int
    """Clips decoded to the end."""
    num_pairs: int
    rejects: Counter[str]
    """Counts by reason: ``clip/unreadable`` of clips, ``pair/near_copy`` and so on of pairs."""
    rejected_clips: tuple[RejectedClip, ...]

    def to_json(self) -> dict[str, Any]:
        """A plain dict for JSON, keys in a fixed order."""
        payload = asdict(self)
        payload["dataset"]["path"] = self.dataset.path.name
        payload["rejects"] = dict(sorted(self.rejects.items()))
        return payload


def decode_spec(keyframes: KeyframeConfig, images: ImageTokenizer) -> DecodeSpec:
    """Settings of the decoder, which must not import the config."""
    return DecodeSpec(frame_px=images.frame_px, bars=images.bars, **keyframes.model_dump())


def ingest_folder(
    root: Place,
    pool: PoolConfig,
    images: ImageTokenizer,
    out: Place,
    *,
    keyframes: KeyframeConfig,
    source: str = "folder",
    max_pairs: int | None = None,
    num_workers: int = 1,
    codes: Place | None = None,
    progress: Progress = silent,
) -> IngestReport:
    """Turn the videos under ``root``, laid out as ``source``, into frame pairs in ``out``.

    ``source`` is a key of SOURCES. With ``codes``, a folder for them, the table is in parts, else
    one Parquet file. Clips inside tars are unpacked beside ``out``, under names of our own, a few
    at a time.

    Rows are sorted by (clip_path, frame0). With ``max_pairs``, clips are taken in the order of a
    hash of their names, so that a part of the folder has clips of all classes.

    Raises:
        UserError: missing or empty folder, more than ``pool.max_bad_fraction`` unreadable clips,
            no pair at all, or a full disk.
    """
    listing = SOURCES[source](local_copy(root))
    spec = decode_spec(keyframes, images)
    gathered = _Gathered(images, listing, max_pairs)
    clips = sorted(listing.clips, key=lambda clip: stable_hash(clip.name))
    with (
        Unpacked(local_state(out.parent) / f".{out.stem}-unpacked") as unpacked,
        DecodePool(
            min(num_workers, max(1, len(clips))),
            memory_mb=pool.decode_memory_mb,
            timeout_s=pool.decode_timeout_s,
        ) as decoders,
    ):
        results = decoders.read(map(unpacked.path, clips), spec)
        for done, (clip, read) in enumerate(zip(clips, results, strict=True), start=1):
            gathered.add(clip, read.sha256, read.result)
            unpacked.drop(clip)
            progress(done, len(clips), f"{gathered.num_pairs} pairs")
            if gathered.full:
                break
    gathered.check(root, pool.max_bad_fraction)
    return gathered.write(out, codes)


@dataclass(frozen=True, slots=True, kw_only=True)
class _ReadyClip:
    """A decoded clip that waits for its codes."""

    clip: Clip
    sha256: str
    content: ClipFrames


class _Gathered:
    """The rows and counts so far."""

    def __init__(self, images: ImageTokenizer, listing: Listing, max_pairs: int | None) -> None:
        self._images = images
        self._max_pairs = max_pairs
        self._batch_frames = batch_frames(images)
        self._waiting: list[_ReadyClip] = []
        self._tables: list[pa.Table] = []
        self._seen: set[str] = set()
        self._rejected = [
            RejectedClip(clip_path=name, reason=reason, detail="")
            for name, reason in listing.refused
        ]
        self._pair_rejects: Counter[str] = Counter()
        self._num_clips = len(listing.refused)
        self._num_read = 0
        self.num_pairs = 0

    @property
    def full(self) -> bool:
        return self._max_pairs is not None and self.num_pairs >= self._max_pairs

    def add(self, clip: Clip, sha256: str, result: ClipFrames | Rejected) -> None:
        self._num_clips += 1
        if isinstance(result, Rejected):
            self._reject(clip, result.reason, result.detail)
            return
        self._num_read += 1
        if sha256 in self._seen:
            self._reject(clip, "duplicate_clip", "the same bytes under another name")
            return
        self._seen.add(sha256)
        verdicts = Counter(pair.verdict for pair in result.pairs)
        accepted = verdicts.pop("accepted", 0)
        self._pair_rejects.update(verdicts)
        if accepted:
            self.num_pairs += accepted
            self._waiting.append(_ReadyClip(clip=clip, sha256=sha256, content=result))
        if sum(len(ready.content.indices) for ready in self._waiting) >= self._batch_frames:
            self._tokenize()

    def _reject(self, clip: Clip, reason: str, detail: str) -> None:
        self._rejected.append(RejectedClip(clip_path=clip.name, reason=reason, detail=detail))

    def _tokenize(self) -> None:
        if self._waiting:
            self._tables.append(_pair_table(self._waiting, self._images))
            self._waiting = []

    def check(self, root: Place, max_bad_fraction: float) -> None:
        """Stop instead of going on with a shrunken or an empty pool."""
        bad = [reject for reject in self._ordered() if reject.reason not in USABLE]
        if len(bad) > max_bad_fraction * self._num_clips:
            raise UserError(
                f"{len(bad)} of {self._num_clips} clips in {root} cannot be read, e.g. "
                f"{bad[0].clip_path}: {bad[0].reason}; mend or remove them, "
                f"or raise pool.max_bad_fraction (now {max_bad_fraction})"
            )
        if not self.num_pairs:
            counts = ", ".join(
                f"{reason} {count}" for reason, count in sorted(self._counts().items())
            )
            raise UserError(
                f"no frame pairs in the {self._num_clips} clips of {root} (rejected: {counts}); "
                "see pool.keyframes: spacing_frames, min_change and max_cut"
            )

    def _ordered(self) -> list[RejectedClip]:
        return sorted(self._rejected, key=lambda reject: reject.clip_path)

    def _counts(self) -> Counter[str]:
        counts = Counter(f"clip/{reject.reason}" for reject in self._rejected)
        counts.update({f"pair/{reason}": count for reason, count in self._pair_rejects.items()})
        return counts

    def write(self, out: Place, codes: Place | None) -> IngestReport:
        self._tokenize()
        rows = pa.concat_tables(self._tables).slice(0, self._max_pairs)
        rows = rows.sort_by([("clip_path", "ascending"), ("frame0", "ascending")])
        return IngestReport(
            dataset=write_pairs(out, rows, PAIR_SCHEMA, codes)
            if codes
            else write_table(out, rows, PAIR_SCHEMA),
            num_clips=self._num_clips,
            num_read=self._num_read,
            num_pairs=rows.num_rows,
            rejects=self._counts(),
            rejected_clips=tuple(self._ordered()),
        )


def code_columns(
    frames_BHW3: np.ndarray, sources: Sequence[int], targets: Sequence[int], images: ImageTokenizer
) -> dict[str, pa.ListArray]:
    """Codes and recognition of pairs, each frame tokenized once.

    Args:
        frames_BHW3: uint8 frames.
        sources: row of every pair's source.
        targets: row of every pair's target.
        images: tokenizes.

    Returns:
        The last three columns of PAIR_SCHEMA by name.
    """
    batch = batch_frames(images)
    parts = [frames_BHW3[begin : begin + batch] for begin in range(0, len(frames_BHW3), batch)]
    codes, features = zip(*map(images.encode_with_features, parts), strict=True)
    codes_BL, features_BLD = np.concatenate(codes).astype(np.uint16), np.concatenate(features)
    recognition = np.square(features_BLD[targets] - features_BLD[sources]).sum(-1)
    columns = {
        "source_codes": codes_BL[sources],
        "target_codes": codes_BL[targets],
        "recognition": recognition.astype(np.float32),
    }
    return {name: _lists(values, PAIR_SCHEMA.field(name)) for name, values in columns.items()}


def batch_frames(images: ImageTokenizer) -> int:
    """Frames that are tokenized at a time."""
    return max(1, _PIXELS_PER_BATCH // images.frame_px**2)


def _pair_table(clips: Sequence[_ReadyClip], images: ImageTokenizer) -> pa.Table:
    """Tokenize each frame once; one row per accepted pair, PAIR_SCHEMA."""
    frames_BHW3 = np.concatenate([ready.content.frames for ready in clips])
    # Rows of `frames_BHW3` in which the pairs' sources and targets lie.
    rows: list[dict[str, Any]] = []
    sources: list[int] = []
    targets: list[int] = []
    offset = 0
    for ready in clips:
        place = {index: offset + row for row, index in enumerate(ready.content.indices)}
        for row in _rows(ready):
            rows.append(row)
            sources.append(place[row["frame0"]])
            targets.append(place[row["frame1"]])
        offset += len(ready.content.indices)
    table = pa.Table.from_pylist(rows, schema=pa.schema(list(PAIR_SCHEMA)[:-3]))
    for name, column in code_columns(frames_BHW3, sources, targets, images).items():
        table = table.append_column(PAIR_SCHEMA.field(name), column)
    return table


def _rows(ready: _ReadyClip) -> Iterator[dict[str, Any]]:
    """The columns of a clip's accepted pairs that need no tokenizer."""
    times_s = dict(zip(ready.content.indices, ready.content.times_s, strict=True))
    for pair in ready.content.pairs:
        if pair.verdict == "accepted":
            yield {
                "pair_id": pair_id(ready.sha256, pair.source, pair.target),
                "clip_sha256": ready.sha256,
                "clip_path": ready.clip.name,
                "clip_class": ready.clip.clip_class,
                "frame0": pair.source,
                "frame1": pair.target,
                "t0_s": times_s[pair.source],
                "t1_s": times_s[pair.target],
                "motion": pair.motion,
            }


def _lists(values_BL: np.ndarray, field: pa.Field) -> pa.ListArray:
    num, length = values_BL.shape
    offsets = pa.array(np.arange(num + 1, dtype=np.int32) * length)
    values = pa.array(np.ascontiguousarray(values_BL).ravel())
    return pa.ListArray.from_arrays(offsets, values, type=field.type)
