"""Films an environment into a LeRobot v3 dataset: every moment, its action, its task in words.

    meta/info.json  meta/tasks.parquet  meta/episodes/chunk-000/file-000.parquet
    data/chunk-000/file-000.parquet     videos/observation.images.scene/chunk-000/file-000.mp4 ...

An episode is a video file. A frame is the picture before its action; its task is the sentence of
what the action leads to. ``meta/stats.json``, which only training a policy reads, is LeRobot's to
compute. The format: huggingface.co/docs/lerobot, "LeRobotDataset v3.0".
"""

import io
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dynamics.core.progress import Progress, silent
from dynamics.data.labelled.lerobot_layout import CAMERA, CHUNK_FILES, place, task_table
from dynamics.data.video.encode import write_mp4
from dynamics.storage.files import write_bytes
from dynamics.storage.run_folder import json_bytes
from dynamics.worlds.environment import open_env
from dynamics.worlds.record import FilmPlan, Step, episode, filmed_picture

_VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"


def write_lerobot(plan: FilmPlan, out: Path, progress: Progress = silent) -> None:
    """Write the dataset; ``meta/info.json`` comes last, and what is finished stays as it is.

    Raises:
        UserError: see `dynamics.worlds.environment.open_env`; or the picture hardly ever changes.
    """
    if (out / "meta" / "info.json").is_file():
        return
    env, actor = open_env(plan.env, plan.words)
    fps = int(env.metadata.get("render_fps") or plan.fps)
    dataset = _Dataset(out, fps)
    total = math.ceil(plan.pairs / plan.length)
    for index in range(total):
        dataset.add(episode(env, actor, plan, index, moments=True))
        progress(index + 1, total, f"filming {plan.env}")
    dataset.close()


@dataclass(slots=True)
class _Dataset:
    folder: Path
    fps: int
    side: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    episodes: list[dict[str, Any]] = field(default_factory=list)
    tasks: dict[str, int] = field(default_factory=dict)

    def add(self, taken: list[Step]) -> None:
        """One episode; its last picture has the task that led to it."""
        number, first = len(self.episodes), len(self.rows)
        pictures = [taken[0].frame]
        for step in taken[1:]:
            pictures += [*step.moments, step.frame]
            action = np.ravel(np.asarray(step.action, np.float32)).tolist()
            task = self.tasks.setdefault(step.sentence, len(self.tasks))
            moments = len(step.moments) + 1 + (step is taken[-1])
            for _ in range(moments):
                self._row(number, len(self.rows) - first, task, action)
        filmed = [filmed_picture(picture) for picture in pictures]
        self.side = filmed[0].shape[0]
        chunk, file = divmod(number, CHUNK_FILES)
        name = _VIDEO.format(video_key=CAMERA, chunk_index=chunk, file_index=file)
        write_mp4(self.folder / name, filmed, fps=self.fps)
        self.episodes.append(
            {
                "episode_index": number,
                "tasks": sorted({step.sentence for step in taken[1:]}),
                "length": len(pictures),
                "dataset_from_index": first,
                "dataset_to_index": len(self.rows),
                "data/chunk_index": 0,
                "data/file_index": 0,
                f"videos/{CAMERA}/chunk_index": chunk,
                f"videos/{CAMERA}/file_index": file,
                f"videos/{CAMERA}/from_timestamp": 0.0,
                f"videos/{CAMERA}/to_timestamp": len(pictures) / self.fps,
                "meta/episodes/chunk_index": 0,
                "meta/episodes/file_index": 0,
            }
        )

    def _row(self, number: int, index: int, task: int, action: list[float]) -> None:
        self.rows.append(
            {
                "action": action,
                "timestamp": index / self.fps,
                "frame_index": index,
                "episode_index": number,
                "index": len(self.rows),
                "task_index": task,
            }
        )

    def close(self) -> None:
        """Write the tables, and at last what they are."""
        schema = pa.schema(
            [
                pa.field("action", pa.list_(pa.float32())),
                pa.field("timestamp", pa.float32()),
                *(pa.field(n, pa.int64()) for n in list(self.rows[0])[2:]),
            ]
        )
        _write(self.folder / "data" / place(0), pa.Table.from_pylist(self.rows, schema))
        meta = self.folder / "meta"
        _write(meta / "episodes" / place(0), pa.Table.from_pylist(self.episodes))
        _write(meta / "tasks.parquet", task_table(list(self.tasks)))
        write_bytes(meta / "info.json", json_bytes(self._info()))

    def _info(self) -> dict[str, Any]:
        video = {"video.fps": self.fps, "video.codec": "h264", "video.pix_fmt": "yuv420p"}
        camera = {
            "dtype": "video",
            "shape": [self.side, self.side, 3],
            "names": ["height", "width", "channels"],
            "info": {**video, "video.is_depth_map": False, "has_audio": False},
        }
        numbers = {
            name: {
                "dtype": "float32" if name in ("action", "timestamp") else "int64",
                "shape": [len(value) if isinstance(value, list) else 1],
                "names": None,
            }
            for name, value in self.rows[0].items()
        }
        return {
            "codebase_version": "v3.0",
            "robot_type": None,
            "total_episodes": len(self.episodes),
            "total_frames": len(self.rows),
            "total_tasks": len(self.tasks),
            "chunks_size": CHUNK_FILES,
            "fps": self.fps,
            "splits": {"train": f"0:{len(self.episodes)}"},
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
            "video_path": _VIDEO,
            "features": {CAMERA: camera, **numbers},
        }


def _write(path: Path, table: pa.Table) -> None:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    write_bytes(path, buffer.getvalue())
