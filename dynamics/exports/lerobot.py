"""A LeRobot v3 dataset with language columns.

An accepted label is an episode of two frames, source and target, whose task is the action sentence.
The sentence also stands in ``language_persistent`` (style ``subtask``), which LeRobot's recipes
read, broadcast over the episode's frames; ``language_events`` is empty. Frames are pictures in the
Parquet files, not video: lossless. ``fps`` is 1, since pairs have no common distance in time; the
times in the clip are in ``t0_s`` and ``t1_s``.

    meta/info.json  meta/stats.json  meta/tasks.parquet  meta/episodes/chunk-000/file-000.parquet
    data/chunk-000/file-000.parquet

The format: huggingface.co/docs/lerobot, "LeRobotDataset v3.0" and "Language columns and recipes".
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dynamics.core.images import encode_png
from dynamics.core.progress import Progress
from dynamics.data.labelled.lerobot_layout import CAMERA, CHUNK_FILES, PATH, place, task_table
from dynamics.exports.cards import dataset_card
from dynamics.exports.labels import LINEAGE_SCHEMA, ExportRow, accepted_labels
from dynamics.exports.parquet import IMAGE_TYPE, ParquetShards, image_cell
from dynamics.storage.run_folder import RunFolder, json_bytes

_COUNTERS = ("frame_index", "episode_index", "index", "task_index")
_LANGUAGE_FIELDS = [
    pa.field("role", pa.string(), nullable=False),
    pa.field("content", pa.string()),
    pa.field("style", pa.string()),
    pa.field("timestamp", pa.float32(), nullable=False),
    pa.field("camera", pa.string()),
    # JSON text; always null here. Not Arrow's JSON type, which pyarrow cannot build from rows.
    pa.field("tool_calls", pa.list_(pa.string())),
]
_SCHEMA = pa.schema(
    [
        pa.field(CAMERA, IMAGE_TYPE),
        pa.field("timestamp", pa.float32()),
        *(pa.field(name, pa.int64()) for name in _COUNTERS),
        pa.field("language_persistent", pa.list_(pa.struct(_LANGUAGE_FIELDS))),
        # Events have no time of their own and take that of their frame.
        pa.field(
            "language_events",
            pa.list_(pa.struct([one for one in _LANGUAGE_FIELDS if one.name != "timestamp"])),
        ),
        *LINEAGE_SCHEMA,
    ]
)


def write(run: RunFolder, round_id: int | None, folder: Path, progress: Progress) -> str:
    """See `dynamics.exports.Format.write`."""
    labels = accepted_labels(run, round_id)
    dataset = _Dataset(folder)
    for row in labels.rows(progress):
        dataset.add(row)
    dataset.close(labels.frame_px)
    header = {"configs": [{"config_name": "default", "data_files": "data/*/*.parquet"}]}
    card = dataset_card(labels, layout="lerobot", header={"tags": ["LeRobot"], **header})
    (folder / "README.md").write_text(card)
    return labels.finish(folder, "lerobot")


@dataclass(slots=True)
class _PixelStats:
    """Running statistics per channel of pictures, values 0 to 1."""

    count: int = 0
    """Pictures."""
    pixels: int = 0
    total: np.ndarray = field(default_factory=lambda: np.zeros(3))
    squares: np.ndarray = field(default_factory=lambda: np.zeros(3))
    low: np.ndarray = field(default_factory=lambda: np.ones(3))
    high: np.ndarray = field(default_factory=lambda: np.zeros(3))

    def add(self, frame_HW3: np.ndarray) -> None:
        values = frame_HW3.reshape(-1, 3) / 255.0
        self.count += 1
        self.pixels += len(values)
        self.total += values.sum(0)
        self.squares += np.square(values).sum(0)
        self.low = np.minimum(self.low, values.min(0))
        self.high = np.maximum(self.high, values.max(0))

    def to_json(self) -> dict[str, Any]:
        """The statistics in LeRobot's shape, (3, 1, 1)."""
        mean = self.total / self.pixels
        std = np.sqrt(np.maximum(self.squares / self.pixels - mean**2, 0))
        channels = {"min": self.low, "max": self.high, "mean": mean, "std": std}
        shaped = {name: values.reshape(3, 1, 1).tolist() for name, values in channels.items()}
        return {**shaped, "count": [self.count]}


class _Dataset:
    """The files of one dataset."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shards = ParquetShards(_SCHEMA, lambda number: folder / "data" / place(number))
        self._tasks: dict[str, int] = {}
        self._episodes: list[dict[str, Any]] = []
        self._pixels = _PixelStats()
        self._numbers: dict[str, list[float]] = {}

    def add(self, row: ExportRow) -> None:
        """One episode."""
        task = self._tasks.setdefault(row.action, len(self._tasks))
        episode = len(self._episodes)
        spoken = {"role": "assistant", "content": row.action, "style": "subtask", "timestamp": 0.0}
        cells, num_bytes = [], 0
        for index, frame in enumerate((row.source, row.target)):
            picture = encode_png(frame)
            num_bytes += len(picture)
            self._pixels.add(frame)
            counters = dict(
                zip(_COUNTERS, (index, episode, 2 * episode + index, task), strict=True)
            )
            numbers = {"timestamp": float(index), **counters}
            for name, value in numbers.items():
                self._numbers.setdefault(name, []).append(value)
            cells.append(
                {
                    CAMERA: image_cell(picture, f"frame-{index:06d}.png"),
                    **numbers,
                    "language_persistent": [{**spoken, "camera": None, "tool_calls": None}],
                    "language_events": [],
                    **row.lineage,
                }
            )
        file = self._shards.add(cells, num_bytes)
        self._episodes.append(
            {
                "episode_index": episode,
                "tasks": [row.action],
                "length": len(cells),
                "data/chunk_index": file // CHUNK_FILES,
                "data/file_index": file % CHUNK_FILES,
                "dataset_from_index": 2 * episode,
                "dataset_to_index": 2 * episode + 2,
                "meta/episodes/chunk_index": 0,
                "meta/episodes/file_index": 0,
            }
        )

    def close(self, frame_px: int) -> None:
        """Write ``meta/`` when all episodes are added."""
        self._shards.close()
        meta = self._folder / "meta"
        episodes = meta / "episodes" / place(0)
        episodes.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(self._episodes), episodes, compression="zstd")
        pq.write_table(task_table(list(self._tasks)), meta / "tasks.parquet")
        stats = {name: _number_stats(values) for name, values in self._numbers.items()}
        info = {
            "codebase_version": "v3.0",
            "robot_type": None,
            "total_episodes": len(self._episodes),
            "total_frames": 2 * len(self._episodes),
            "total_tasks": len(self._tasks),
            "chunks_size": CHUNK_FILES,
            "fps": 1,
            "splits": {"train": f"0:{len(self._episodes)}"},
            "data_path": f"data/{PATH}",
            "video_path": None,
            "features": _features(frame_px),
        }
        (meta / "stats.json").write_bytes(json_bytes({CAMERA: self._pixels.to_json(), **stats}))
        (meta / "info.json").write_bytes(json_bytes(info))


def _features(frame_px: int) -> dict[str, Any]:
    image = {
        "dtype": "image",
        "shape": [frame_px, frame_px, 3],
        "names": ["height", "width", "channels"],
    }
    kinds = {"float": "float32", "double": "float64"}
    others = {
        one.name: {
            "dtype": "language"
            if one.name.startswith("language_")
            else kinds.get(str(one.type), str(one.type)),
            "shape": [1],
            "names": None,
        }
        for one in _SCHEMA
        if one.name != CAMERA
    }
    return {CAMERA: image, **others}


def _number_stats(values: list[float]) -> dict[str, Any]:
    array = np.array(values)
    found = {"min": array.min(), "max": array.max(), "mean": array.mean(), "std": array.std()}
    return {**{name: [float(one)] for name, one in found.items()}, "count": [len(values)]}
