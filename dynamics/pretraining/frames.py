"""Frames of a user's own clips and of labelled pairs, without those that are held out.

N frames, P pairs, H = W frame pixels.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dynamics.core.config import KeyframeConfig, LoopConfig, PoolPart
from dynamics.core.domain import Split, load_simulator
from dynamics.core.errors import UserError
from dynamics.core.progress import Progress
from dynamics.core.records import stable_hash
from dynamics.data.labelled.build import divided, listings
from dynamics.data.labelled.listing import LabelledPair
from dynamics.data.labelled.paths import Refused
from dynamics.data.labelled.read import PairReader, file_digests
from dynamics.data.units import Unit
from dynamics.data.video.decode import ClipFrames, DecodeSpec
from dynamics.data.video.filmed import CLIPS_SCHEMA
from dynamics.data.video.ingest import ClipReader
from dynamics.data.video.sandbox import ReadClip, close_decoders
from dynamics.data.video.sources import Clip, clips_by_path
from dynamics.storage.streams import read_ahead
from dynamics.storage.tables import read_table

Frames = NDArray[np.uint8]
_PAIRS_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class Footage:
    """Frames in the order of their clips and, within one, of their times."""

    frames: Frames
    """[N, H, W, 3]."""
    clip: NDArray[np.int64]
    """Number of the clip that each frame is from, [N]."""
    time_s: NDArray[np.float64]
    """Seconds from the clip's beginning, growing within it, [N]."""

    @property
    def pairs(self) -> NDArray[np.int64]:
        """Rows of every two frames that follow each other in a clip, [P, 2]."""
        first = np.flatnonzero(self.clip[1:] == self.clip[:-1])
        return np.stack([first, first + 1], axis=1)

    @property
    def ends(self) -> tuple[Frames, Frames]:
        """The first and the second frames of `pairs`, [P, H, W, 3] each."""
        return self.frames[self.pairs[:, 0]], self.frames[self.pairs[:, 1]]

    def save(self, folder: Path) -> None:
        """Write arrays into a new folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("clip", "time_s", "frames"):
            np.save(folder / f"{name}.npy", getattr(self, name))

    @classmethod
    def load(cls, folder: Path) -> "Footage":
        """Read what `save` wrote."""
        return cls(*(np.load(folder / f"{name}.npy") for name in ("frames", "clip", "time_s")))


@dataclass(frozen=True, slots=True)
class ClipOf:
    """A clip, and how its key frames are chosen."""

    clip: Clip
    keyframes: KeyframeConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """What may be read of a run's clips and labels."""

    clips: list[ClipOf]
    """In a drawn order."""
    labelled: list[LabelledPair]
    heldout: list[LabelledPair] | list[ClipOf]
    heldout_digests: frozenset[str]
    """sha256 of the files behind held-out pairs: their clips have other names, maybe."""
    sentences: list[str]
    """Of all labels; held-out ones give words, and teach nothing."""


def list_frames(cfg: LoopConfig, filmed: Path, progress: Progress) -> Listed:
    """The clips of the pool, and the labelled set; what is missing a world films into ``filmed``.

    Raises:
        UserError: nothing in a folder can be used, or there is neither a folder nor a world.
    """
    return (
        _list_filmed(cfg, filmed, progress)
        if cfg.labelled.dataset is None
        else _list(cfg, progress)
    )


def _list(cfg: LoopConfig, progress: Progress) -> Listed:
    labelled, heldout = divided(cfg, *listings(cfg, progress))
    held = {name for pair in heldout for name in (pair.name, *pair.sources)}
    digests: set[str] = set()
    for pair in heldout:
        try:
            digests |= file_digests(pair.frames)[1]
        except (OSError, Refused):  # it is not there, so it is nowhere else either
            continue
    clips = {
        path: ClipOf(clip, cfg.pool.keyframes)
        for path, clip in clips_by_path(cfg.pool.parts).items()
        if held.isdisjoint((path, clip.name))
    }
    return Listed(
        clips=_drawn(cfg, clips),
        labelled=labelled,
        heldout=heldout,
        heldout_digests=frozenset(digests),
        sentences=[pair.action for pair in (*labelled, *heldout)],
    )


def _list_filmed(cfg: LoopConfig, filmed: Path, progress: Progress) -> Listed:
    simulator = load_simulator(cfg)
    numbers: dict[Split, int] = {
        "labelled": cfg.labelled.num_pairs,
        "pool": cfg.pool.num_pairs,
        "heldout": cfg.labelled.num_heldout,
    }
    clips: dict[Split, dict[str, ClipOf]] = {}
    sentences: list[str] = []
    for split, number in numbers.items():
        folder, parts, keyframes = filmed / split, cfg.pool.parts, cfg.pool.keyframes
        if split != "pool" or not parts:
            simulator.film(split, number, folder, progress)
            parts, keyframes = (PoolPart(path=folder / "clips"),), simulator.keyframes(split)
        found = clips_by_path(parts)
        clips[split] = {f"{split}/{path}": ClipOf(clip, keyframes) for path, clip in found.items()}
        if split != "pool":
            said = read_table(folder / "clips.parquet", CLIPS_SCHEMA, ["actions"])["actions"]
            sentences += [sentence for actions in said.to_pylist() for sentence in actions]
    return Listed(
        clips=_drawn(cfg, clips["labelled"] | clips["pool"]),
        labelled=[],
        heldout=list(clips["heldout"].values()),
        heldout_digests=frozenset(),
        sentences=sentences,
    )


def _drawn(cfg: LoopConfig, clips: Mapping[str, ClipOf]) -> list[ClipOf]:
    order = sorted(clips, key=lambda path: stable_hash(cfg.seed, "pretrain", path))
    return [clips[path] for path in order]


def read_footage(
    cfg: LoopConfig, listed: Listed, frame_px: int, most: int, progress: Progress
) -> Footage:
    """Key frames of the clips, and the labelled pairs, about ``most`` frames together.

    Raises:
        UserError: no clip has two frames that differ.
    """
    parts = [
        *islice(_labelled(cfg, listed.labelled, frame_px, progress, "labelled"), most // 4),
    ]
    count = sum(len(frames) for frames, _ in parts)
    clips = _clips(cfg, listed.clips, listed.heldout_digests, frame_px, progress)
    for frames, times in clips:
        if count >= most:
            break
        parts.append((frames, times))
        count += len(frames)
    if not parts:
        raise UserError(
            f"no frames of {cfg.pool.path or 'the films'}: no clip has two key frames that differ; "
            "dynamics ingest says why"
        )
    return _footage(parts)


def read_heldout(cfg: LoopConfig, listed: Listed, frame_px: int, progress: Progress) -> Footage:
    """The frames of held-out pairs, which train nothing; raises as `read_pairs`."""
    clips = [one for one in listed.heldout if isinstance(one, ClipOf)]
    if clips:
        return _footage(list(_clips(cfg, clips, frozenset(), frame_px, progress)))
    pairs = [one for one in listed.heldout if isinstance(one, LabelledPair)]
    return read_pairs(cfg, pairs[: cfg.labelled.num_heldout], frame_px, progress, "held-out")


def read_pairs(
    cfg: LoopConfig, pairs: Sequence[LabelledPair], frame_px: int, progress: Progress, what: str
) -> Footage:
    """The frames of labelled pairs, two a clip.

    Raises:
        UserError: none can be read.
    """
    parts = list(_labelled(cfg, pairs, frame_px, progress, what))
    if not parts:
        raise UserError(f"no {what} pair can be read, or none shows a change")
    return _footage(parts)


_Part = tuple[Frames, Sequence[float]]
"""Frames of a clip or pair with their times."""


def _footage(parts: Sequence[_Part]) -> Footage:
    return Footage(
        np.concatenate([frames for frames, _ in parts]),
        np.repeat(np.arange(len(parts)), [len(frames) for frames, _ in parts]),
        np.concatenate([np.asarray(times, np.float64) for _, times in parts]),
    )


def _labelled(
    cfg: LoopConfig, pairs: Sequence[LabelledPair], frame_px: int, progress: Progress, what: str
) -> Iterator[_Part]:
    pool = cfg.pool
    read = PairReader(
        frame_px=frame_px,
        bars=None,
        memory_mb=pool.decode_memory_mb,
        timeout_s=pool.decode_timeout_s,
        cpu_per_s=pool.decode_cpu_per_s,
    )
    starts = range(0, len(pairs), _PAIRS_AT_ONCE)
    units = (Unit(key="", entries=tuple(pairs[at : at + _PAIRS_AT_ONCE])) for at in starts)
    with closing(read_ahead(read, units, close_decoders)) as tables:
        for number, (_, table) in enumerate(tables, start=1):
            for row in table.to_pylist():
                for pair in row["pairs"]:
                    frames = np.frombuffer(row["frames"], np.uint8)
                    times = (pair["t0_s"], max(pair["t1_s"], pair["t0_s"] + 1e-3))
                    yield frames.reshape(2, frame_px, frame_px, 3), times
            done = min(number * _PAIRS_AT_ONCE, len(pairs))
            progress(done, len(pairs), f"read {what} pairs")


def _clips(
    cfg: LoopConfig,
    clips: Sequence[ClipOf],
    without: frozenset[str],
    frame_px: int,
    progress: Progress,
) -> Iterator[_Part]:
    """The key frames of clips, without those of some digests."""
    pool, seen = cfg.pool, set(without)

    def read(one: ClipOf) -> ReadClip:
        spec = DecodeSpec(frame_px=frame_px, **one.keyframes.model_dump())
        reader = ClipReader(
            spec=spec,
            memory_mb=pool.decode_memory_mb,
            timeout_s=pool.decode_timeout_s,
            cpu_per_s=pool.decode_cpu_per_s,
        )
        return reader.read(one.clip)

    with closing(read_ahead(read, clips, close_decoders)) as contents:
        for number, (_, content) in enumerate(contents, start=1):
            progress(number, len(clips), "read clips")
            found = content.result
            if content.sha256 not in seen and isinstance(found, ClipFrames) and len(found.frames):
                seen.add(content.sha256)
                yield found.frames, found.times_s
