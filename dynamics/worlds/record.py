"""Films Gymnasium environments: clips as any world films them, with sentences for some pairs."""

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from dynamics.core.config import KeyframeConfig
from dynamics.core.errors import UserError
from dynamics.core.progress import Progress, silent
from dynamics.core.seeds import numpy_rng
from dynamics.data.video.filmed import Filmed, write_clips
from dynamics.storage.files import write_bytes
from dynamics.worlds.environment import Actor, open_env, reset

_MOST_PX = 512
"""Longest side of a filmed picture."""
_TRIES = 20
_MIN_CHANGE = 1e-4
"""A turn of the agent of a level of 19x19 cells changes its picture by 3e-4."""
_LABELS = pa.schema(
    [
        pa.field("source_image", pa.binary(), nullable=False),  # PNG
        pa.field("target_image", pa.binary(), nullable=False),
        pa.field("action", pa.string(), nullable=False),
        pa.field("clip_path", pa.string(), nullable=False),  # relative to the clips folder
    ]
)
"""A labelled set as `dynamics.data.labelled.table` reads it."""


@dataclass(frozen=True, slots=True)
class Step:
    """A picture that differs from the one before, and the sentence that led to it."""

    frame: NDArray[np.uint8]
    state: str
    sentence: str
    action: Any = None
    moments: tuple[NDArray[np.uint8], ...] = ()
    """The pictures on the way to ``frame``, where they are wanted."""


def steps(
    env: Any, actor: Actor, rng: np.random.Generator, repeat: int = 1, *, moments: bool = False
) -> Iterator[Step]:
    """An episode from its beginning, without the actions that leave the picture as it is.

    Args:
        env: the environment; it is reset.
        actor: chooses the actions, and says what they did.
        rng: random numbers of the episode.
        repeat: moments that each action is carried out for.
        moments: keep the pictures of all of them.
    """
    reset(env, int(rng.integers(2**31)))
    look, frame = actor.look(), actor.frame()
    yield Step(frame, actor.state(look), "")
    unchanged, over = 0, False
    while not over and unchanged < 100 * _TRIES:
        action = actor.act(rng)
        between = []
        for moment in range(repeat):
            _, _, terminated, truncated, _ = env.step(action)
            over = over or (not actor.goes_on and bool(terminated or truncated))
            if moments and moment < repeat - 1:
                between.append(actor.frame())
        before, look = look, actor.look()
        new = actor.frame()
        if np.array_equal(new, frame):
            unchanged += 1
            continue
        frame, unchanged = new, 0
        said = actor.say(action, before, look)
        yield Step(frame, actor.state(look), said, action, tuple(between))


def to_clip(taken: list[Step], hold_frames: int, scale: int | None = None) -> Filmed:
    """A clip of an episode's pictures, square with black bars, each held for a while.

    Args:
        taken: the pictures and what leads to each.
        hold_frames: video frames of a picture.
        scale: video pixels of a picture's pixel; none = as many as make it about 200 wide, since
            video keeps the colours of 2x2 pixels only.
    """
    pictures = np.stack([filmed_picture(one.frame, scale) for one in taken])
    frames = np.repeat(pictures, hold_frames, axis=0)
    return Filmed(frames, [one.state for one in taken], [one.sentence for one in taken[1:]])


def filmed_picture(frame: NDArray[np.uint8], scale: int | None = None) -> NDArray[np.uint8]:
    """A picture as it is filmed: square, of an even side, enlarged without blur or reduced."""
    side = max(frame.shape[:2])
    square = np.zeros((side, side, 3), np.uint8)
    square[: frame.shape[0], : frame.shape[1]] = frame
    if side > _MOST_PX:
        small = Image.fromarray(square).resize((_MOST_PX, _MOST_PX), Image.Resampling.BOX)
        return np.asarray(small)
    times = scale or max(1, round(200 / side))
    large = square.repeat(times, axis=0).repeat(times, axis=1)
    odd = large.shape[0] % 2
    return np.pad(large, ((0, odd), (0, odd), (0, 0)))


def held_keyframes(length: int, hold_frames: int) -> KeyframeConfig:
    """Settings that pick one frame of every state of a clip, however little it changes."""
    return KeyframeConfig(
        top_k=length + 1, spacing_frames=hold_frames, min_change=_MIN_CHANGE, max_cut=1.0
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FilmPlan:
    """What is filmed of an environment."""

    env: str
    """Id, as `open_env` takes it."""
    words: str | None = None
    """Names of actions."""
    pairs: int
    """Pairs to film."""
    labels: int
    """Pairs that get a sentence in ``labels.parquet``: the first ones."""
    length: int
    """Pairs of a clip."""
    repeat: int | None = None
    """Moments that an action is carried out for; none = the actor's."""
    hold_frames: int
    fps: int
    seed: int


def film_env(plan: FilmPlan, out: Path, progress: Progress = silent) -> None:
    """Write ``out/clips``, ``out/labels.parquet`` and ``out/clips.parquet``, which comes last.

    Raises:
        UserError: see `open_env`; or the picture hardly ever changes.
    """
    if (out / "clips.parquet").is_file():
        return
    env, actor = open_env(plan.env, plan.words)
    rows: list[dict[str, Any]] = []

    def film(index: int) -> Filmed:
        taken = episode(env, actor, plan, index)
        for source, target in pairwise(taken):
            if target.sentence and len(rows) < plan.labels:
                ends = [png(filmed_picture(one.frame)) for one in (source, target)]
                names = (*ends, target.sentence, f"{index:06d}.mp4")
                rows.append(dict(zip(_LABELS.names, names, strict=True)))
        if len(rows) == plan.labels or index == num_clips - 1:
            write_labels(out / "labels.parquet", rows)
        return to_clip(taken, plan.hold_frames)

    num_clips = math.ceil(plan.pairs / plan.length)
    write_clips(out, num_clips, film, plan.fps, progress, plan.env, threads=1)


def episode(
    env: Any, actor: Actor, plan: FilmPlan, index: int, *, moments: bool = False
) -> list[Step]:
    """The longest of some episodes, at most ``length`` pairs; the first that is long enough."""
    rng = numpy_rng(plan.seed, "film", plan.env, index)
    longest: list[Step] = []
    for _ in range(_TRIES):
        walk = steps(env, actor, rng, plan.repeat or actor.repeat, moments=moments)
        taken = list(islice(walk, plan.length + 1))
        longest = max(longest, taken, key=len)
        if len(longest) > plan.length:
            break
    if len(longest) < 2:
        raise UserError(
            f"{plan.env}: no action changed the picture in {_TRIES} episodes; try --repeat, by "
            "which each action is carried out for longer"
        )
    return longest


def write_labels(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write pictures and sentences as `dynamics.data.labelled.table` reads them."""
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, _LABELS), buffer, row_group_size=64)
    write_bytes(path, buffer.getvalue())


def png(frame: NDArray[np.uint8]) -> bytes:
    """A picture's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG")
    return buffer.getvalue()
