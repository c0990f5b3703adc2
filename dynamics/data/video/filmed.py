"""Clips that a world films: real mp4 files, with what happens in them beside them.

A clip holds every state for ``hold_frames`` frames and then jumps to the next, so motion peaks at
the jumps, which is where key-frame picking lands.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from dynamics.core.places import Place
from dynamics.core.progress import Progress
from dynamics.core.records import TRUTH_SCHEMA
from dynamics.data.video.encode import write_mp4
from dynamics.storage.files import make_folder
from dynamics.storage.tables import read_table, write_table

CLIPS_SCHEMA = pa.schema(
    [
        pa.field("clip_path", pa.string(), nullable=False),  # relative to the clips folder
        pa.field("states", pa.list_(pa.string()), nullable=False),
        pa.field(
            "actions", pa.list_(pa.string()), nullable=False
        ),  # actions[i] leads to states[i + 1]
    ]
)


@dataclass(frozen=True, slots=True)
class Filmed:
    """A clip before it is written."""

    frames: np.ndarray
    """uint8 [T, H, W, 3], H and W even."""
    states: list[str]
    """Canonical texts, one for each state; "" where the world has none."""
    sentences: list[str]
    """One sentence for each change; "" where there is none to say."""


def write_clips(
    out: Place,
    num_clips: int,
    film: Callable[[int], Filmed],
    fps: int,
    progress: Progress,
    what: str,
    *,
    threads: int = 2,
) -> None:
    """Write clips into ``out/clips``; ``out/clips.parquet`` (CLIPS_SCHEMA) comes last.

    Args:
        out: a folder; finished clips in it stay as they are.
        num_clips: how many.
        film: makes a clip from its number, in several threads.
        fps: frames a second.
        progress: called with the finished clips.
        what: their name in progress messages.
        threads: clips that are made at a time.
    """
    if (out / "clips.parquet").is_file():
        return
    clips = out / "clips"
    make_folder(clips)

    def write(index: int) -> dict[str, object]:
        clip, name = film(index), f"{index:06d}.mp4"
        write_mp4(clips / name, clip.frames, fps=fps)
        return {"clip_path": name, "states": clip.states, "actions": clip.sentences}

    rows = []
    with ThreadPoolExecutor(max_workers=threads) as pool:
        for row in pool.map(write, range(num_clips)):
            rows.append(row)
            progress(len(rows), num_clips, f"filming {what}")
    os.sync()  # clips are renamed into place without a sync each; the marker comes after them
    write_table(
        out / "clips.parquet", pa.Table.from_pylist(rows, schema=CLIPS_SCHEMA), CLIPS_SCHEMA
    )


def filmed_states(data: Place) -> frozenset[str]:
    """Every state that a clip in a run's data folder shows."""
    states: set[str] = set()
    for path in data.glob("*/clips.parquet"):
        for clip in read_table(path, CLIPS_SCHEMA, ["states"])["states"].to_pylist():
            states.update(clip)
    return frozenset(states)


def truth_table(pairs: pa.Table, out: Place, hold_frames: int) -> pa.Table:
    """TRUTH_SCHEMA for the ingested pairs of a filmed split.

    Pairs that span no action or several are left out: they have no single true sentence.
    """
    clips = {
        row["clip_path"]: row for row in read_table(out / "clips.parquet", CLIPS_SCHEMA).to_pylist()
    }
    rows = []
    columns = pairs.select(["pair_id", "clip_path", "frame0", "frame1"]).to_pylist()
    for pair in columns:
        clip = clips[pair["clip_path"]]
        source, target = pair["frame0"] // hold_frames, pair["frame1"] // hold_frames
        if target == source + 1:
            rows.append(
                {
                    "pair_id": pair["pair_id"],
                    "action": clip["actions"][source],
                    "source_state": clip["states"][source],
                    "target_state": clip["states"][target],
                }
            )
    return pa.Table.from_pylist(rows, schema=TRUTH_SCHEMA)
