"""The accepted labels of a round as rows: sentence, two frames, lineage.

H = W = the model's frame size in pixels.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dynamics.core.config import PoolPart
from dynamics.core.domain import load_simulator
from dynamics.core.errors import UserError
from dynamics.core.progress import Progress
from dynamics.core.records import PAIR_SCHEMA
from dynamics.data.video.decode import ClipFrames
from dynamics.data.video.ingest import clip_reader
from dynamics.data.video.sandbox import ReadClip, close_decoders
from dynamics.data.video.sources import Clip, clips_by_path
from dynamics.exports.rounds import ExportedRound, finished_round
from dynamics.models import load_image_tokenizer
from dynamics.models.image_tokenizer import ImageTokenizer
from dynamics.storage.ledger import Ledger, Manifest
from dynamics.storage.run_folder import RunFolder, json_bytes
from dynamics.storage.streams import read_ahead
from dynamics.storage.tables import dataset_ref, iter_table

FramesFrom = Literal["clip", "codes"]

LINEAGE_SCHEMA = pa.schema(
    [
        pa.field("label_id", pa.string(), nullable=False),
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("round", pa.int64(), nullable=False),
        pa.field("idm_digest", pa.string(), nullable=False),
        pa.field("prompt_version", pa.string(), nullable=False),
        pa.field("decode", pa.string(), nullable=False),  # JSON of the decode parameters
        pa.field("logprob", pa.float64(), nullable=False),  # of the whole sentence, in nats
        pa.field("num_tokens", pa.int64(), nullable=False),  # of the sentence, end included
        pa.field("score_name", pa.string(), nullable=False),  # the filter's score
        pa.field("score", pa.float64(), nullable=False),
        pa.field("clip_sha256", pa.string(), nullable=False),
        pa.field("clip_path", pa.string(), nullable=False),
        pa.field("clip_class", pa.string(), nullable=False),
        pa.field("frame0", pa.int64(), nullable=False),
        pa.field("frame1", pa.int64(), nullable=False),
        pa.field("t0_s", pa.float64(), nullable=False),
        pa.field("t1_s", pa.float64(), nullable=False),
        pa.field("frames", pa.string(), nullable=False),  # `FramesFrom`
    ]
)
"""Origin of a row; every export of labels carries it with every row."""

_PAIR_COLUMNS = [name for name in PAIR_SCHEMA.names if name not in ("motion", "recognition")]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRow:
    """One accepted label."""

    action: str
    source: np.ndarray
    """uint8 [H, W, 3], RGB."""
    target: np.ndarray
    lineage: dict[str, str | int | float]
    """The columns of LINEAGE_SCHEMA."""

    @property
    def key(self) -> str:
        """Stem of the row's files."""
        return str(self.lineage["label_id"])


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptedLabels:
    """The accepted labels of a round, in the order of clips and frames."""

    origin: ExportedRound
    manifest: Manifest
    images: ImageTokenizer
    _rows: list[dict[str, Any]]
    frames_from: Counter[FramesFrom] = field(default_factory=Counter)
    """Rows read so far, by where their frames came from."""

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def frame_px(self) -> int:
        """Side of the frames."""
        return self.images.frame_px

    def rows(self, progress: Progress) -> Iterator[ExportRow]:
        """Every label with its frames, decoded again from its clip where that is still there.

        The frames have the size and crop that the model saw. They come from the codes when the clip
        is gone, changed or no longer gives the frame.
        """
        groups = [list(group) for _, group in groupby(self._rows, lambda row: row["clip_path"])]
        done = 0
        for group, read in self._with_clips(groups):
            for row, frames, frames_from in self._frames(group, read):
                self.frames_from[frames_from] += 1
                done += 1
                lineage = {name: row[name] for name in LINEAGE_SCHEMA.names if name in row}
                yield ExportRow(
                    action=row["action"],
                    source=frames[0],
                    target=frames[1],
                    lineage={**lineage, "frames": frames_from},
                )
            progress(done, len(self._rows), "export labels")

    def lineage(self) -> dict[str, Any]:
        """Origin of the whole export; complete when all rows were read."""
        return {
            **self.origin.parents(),
            **{f"{name}_digest": self.manifest.parents[name] for name in ("pool", "idm")},
            "prompt_version": self.manifest.parents["prompt_version"],
            "filter": self.origin.cfg.filter.model_dump(mode="json"),
            "decisions": self.manifest.reasons,
            "num_rows": len(self),
            "frame_px": self.frame_px,
            "frames": dict(sorted(self.frames_from.items())),
        }

    def finish(self, folder: Path, form: str) -> str:
        """Write ``lineage.json`` when all rows were read; returns a summary in one line.

        Raises:
            ValueError: rows are missing.
        """
        if self.frames_from.total() != len(self):
            raise ValueError(f"{self.frames_from.total()} of {len(self)} rows were exported")
        (folder / "lineage.json").write_bytes(json_bytes({"format": form, **self.lineage()}))
        return (
            f"{len(self):,} labels of round {self.origin.round_id}; frames of "
            f"{self.frames_from['clip']:,} decoded from the clips, of "
            f"{self.frames_from['codes']:,} drawn from the codes"
        )

    def _with_clips(
        self, groups: Sequence[list[dict[str, Any]]]
    ) -> Iterator[tuple[list[dict[str, Any]], ReadClip | None]]:
        cfg, clips = self.origin.cfg, self._clips()
        filmed = not cfg.pool.parts
        keyframes = load_simulator(cfg).keyframes("pool") if filmed else cfg.pool.keyframes
        found = [clips.get(group[0]["clip_path"]) for group in groups]
        there = [clip for clip in found if clip is not None and clip.path.is_file()]
        reader, known = clip_reader(keyframes, cfg.pool, self.images), set(there)
        with closing(read_ahead(reader.read, there, close_decoders)) as read:
            for group, clip in zip(groups, found, strict=True):
                yield group, next(read)[1] if clip in known else None

    def _clips(self) -> dict[str, Clip]:
        """The pool's clips that are on disk now, by path; empty when a folder is gone."""
        pool = self.origin.cfg.pool
        filmed = PoolPart(path=self.origin.run.data / "pool" / "clips")
        try:
            return clips_by_path(pool.parts or (filmed,))
        except UserError:
            return {}

    def _frames(
        self, group: Sequence[Mapping[str, Any]], read: ReadClip | None
    ) -> Iterator[tuple[Mapping[str, Any], np.ndarray, FramesFrom]]:
        """Each row with its two frames, uint8 [2, H, W, 3]."""
        decoded: dict[int, np.ndarray] = {}
        if read is not None and isinstance(read.result, ClipFrames):
            decoded = dict(zip(read.result.indices, read.result.frames, strict=True))
        for row in group:
            wanted = (row["frame0"], row["frame1"])
            same = read is not None and read.sha256 == row["clip_sha256"]
            if same and all(index in decoded for index in wanted):
                yield row, np.stack([decoded[index] for index in wanted]), "clip"
            else:
                codes = np.array([row["source_codes"], row["target_codes"]], dtype=np.int64)
                yield row, self.images.decode(codes), "codes"


def accepted_labels(run: RunFolder, round_id: int | None) -> AcceptedLabels:
    """The accepted labels of a round; ``round_id`` None is the last promoted one.

    Raises:
        UserError: no such round, it accepted nothing, or a table is missing or damaged.
    """
    origin = finished_round(run, round_id, first=1)
    ledger = Ledger(run.ledger)
    manifest = ledger.manifest(origin.round_id)
    pool = dataset_ref(run.pool)
    if pool.digest != manifest.parents["pool"]:
        raise UserError(
            f"{pool.path} is not the pool that round {origin.round_id} labelled; restore it"
        )
    accepted = ledger.accepted(origin.round_id)
    if not accepted.num_rows:
        raise UserError(f"round {origin.round_id} accepted no label; name another with --round")
    ids = accepted["pair_id"].combine_chunks()
    found = [
        rows.filter(pc.is_in(rows["pair_id"], value_set=ids))
        for rows in iter_table(pool, PAIR_SCHEMA, _PAIR_COLUMNS)
    ]
    pairs = _rows_of(pa.concat_tables(found), "pair_id", accepted["pair_id"])
    score_name = origin.cfg.filter.score
    rows = [
        {
            **pair,
            **label,
            "round": label["round_id"],
            "logprob": float(np.sum(label["token_logprobs"], dtype=np.float64)),
            "num_tokens": len(label["token_logprobs"]),
            "score_name": score_name,
        }
        for pair, label in zip(pairs.to_pylist(), accepted.to_pylist(), strict=True)
    ]
    rows.sort(key=lambda row: (row["clip_path"], row["frame0"], row["label_id"]))
    images = load_image_tokenizer(origin.cfg.model.family, origin.cfg.base_path())
    return AcceptedLabels(origin=origin, manifest=manifest, images=images, _rows=rows)


def _rows_of(table: pa.Table, key: str, wanted: pa.ChunkedArray) -> pa.Table:
    """The rows with the wanted keys, in their order."""
    places = pc.index_in(wanted.combine_chunks(), value_set=table[key].combine_chunks())
    if places.null_count:
        raise UserError(f"{places.null_count} labels have no {key} in the run's tables; restore it")
    return table.take(places)
