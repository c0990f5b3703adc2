"""Small real data sets and pools, in the layouts in which the public ones are distributed."""

import csv
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dynamics.data.video.encode import write_mp4

ACTIONS = ("slide the ring", "remove the cross", "take the square", "put the ring down")


def shaded(shade: int, size: int = 48) -> np.ndarray:
    """A frame, uint8 [size, size, 3], whose bright square and background tell its number."""
    frame = np.full((size, size, 3), 30 + shade % 100, np.uint8)
    left = (5 * shade) % (size - 12)
    frame[8:20, left : left + 12] = (250, 40 + shade % 200, 60)
    return frame


def picture(shade: int, kind: str = "PNG", size: int = 48) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(shaded(shade, size)).save(sink, kind)
    return sink.getvalue()


def film(shades: Sequence[int], hold: int = 5, size: int = 64) -> np.ndarray:
    """Frames [T, size, size, 3] that show every shade for ``hold`` frames."""
    return np.repeat(np.stack([shaded(shade, size) for shade in shades]), hold, axis=0)


def write_clip(path: Path, shades: Sequence[int], fps: int = 10) -> None:
    """An mp4 or webm or avi, by suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = film(shades)
    if path.suffix.lower() == ".mp4":
        write_mp4(path, frames, fps)
        return
    codec = {".webm": "libvpx", ".avi": "mjpeg"}[path.suffix.lower()]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def write_aurora(root: Path, num: int = 8, tasks: Sequence[str] = ("magicbrush", "ag")) -> Path:
    """A checkout: ``num`` rows of every task; the other manifests are missing."""
    for place, task in enumerate(tasks):
        rows = []
        for number in range(num):
            ends = (
                [f"V{number}.mp4_{number}_left.png", f"V{number}.mp4_{number}_right.png"]
                if task == "ag"
                else [f"{number}/{number}-input.png", f"{number}/{number}-output1.png"]
            )
            names = [f"data/{task}/images/{end}" for end in ends]
            for step, name in enumerate(names):
                path = root / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(picture(100 * place + 7 * number + 3 * step))
            action = ACTIONS[number % len(ACTIONS)]
            words = [action, "another wording"] if number % 2 else action
            rows.append({"instruction": words, "input": names[0], "output": names[1]})
        (root / "data" / task / "train.json").write_text(json.dumps(rows))
    return root


def write_something(root: Path, num: int = 8) -> Path:
    rows = []
    for number in range(num):
        write_clip(root / "20bn-something-something-v2" / f"{number}.webm", (number, 40 + number))
        action = f"putting cup {number} on plate"
        template = "Putting [something] on [something]"
        rows.append(
            {
                "id": str(number),
                "label": action,
                "template": template,
                "placeholders": ["cup", "plate"],
            }
        )
    (root / "labels").mkdir()
    (root / "labels" / "train.json").write_text(json.dumps(rows))
    return root


def write_epic(root: Path, num_videos: int = 4) -> Path:
    """Two narrated segments a video of 2 seconds."""
    rows = []
    for number in range(num_videos):
        video = f"P01_{number:02d}"
        shades = tuple(range(10 * number, 10 * number + 4))
        write_clip(root / "EPIC-KITCHENS" / "P01" / "videos" / f"{video}.MP4", shades)
        for part, (start, stop) in enumerate((("0.10", "0.80"), ("1.10", "1.90"))):
            rows.append(
                {
                    "narration_id": f"{video}_{part}",
                    "participant_id": "P01",
                    "video_id": video,
                    "narration_timestamp": "00:00:00.000",
                    "start_timestamp": f"00:00:0{start}",
                    "stop_timestamp": f"00:00:0{stop}",
                    "start_frame": "1",
                    "stop_frame": "9",
                    "narration": ACTIONS[(number + part) % len(ACTIONS)],
                    "verb": "open",
                    "verb_class": "3",
                    "noun": "door",
                    "noun_class": "3",
                    "all_nouns": "['door']",
                    "all_noun_classes": "[3]",
                }
            )
    with (root / "EPIC_100_train.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return root


def write_parquet(root: Path, num: int = 8) -> Path:
    """Two row groups of embedded pictures."""
    columns = {
        "source_image": [picture(9 * number) for number in range(num)],
        "target_image": [picture(9 * number + 4) for number in range(num)],
        "action": [ACTIONS[number % len(ACTIONS)] for number in range(num)],
        "clip_path": [f"clips/{number // 2}.mp4" for number in range(num)],
        "clip_class": ["kitchen"] * num,
    }
    pq.write_table(pa.table(columns), root / "pairs.parquet", row_group_size=5)
    return root


def lerobot_info(**changes: object) -> dict[str, object]:
    camera = {"dtype": "video", "shape": [64, 64, 3], "names": ["height", "width", "channels"]}
    return {
        "codebase_version": "v3.0",
        "fps": 10,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": {
            "observation.state": {"dtype": "float32", "shape": [2], "names": None},
            "observation.images.front": camera,
            "observation.images.wrist": camera,
        },
    } | changes


def write_lerobot(
    root: Path, num_episodes: int = 4, *, language: bool = False, subtasks: bool = False
) -> Path:
    """Episodes of 10 frames with one task each, all in one video file and one data file.

    With ``language`` every episode has two v3.1 subtasks, with ``subtasks`` two indexed ones.
    """
    for folder in ("meta/episodes/chunk-000", "data/chunk-000"):
        (root / folder).mkdir(parents=True)
    (root / "meta" / "info.json").write_text(json.dumps(lerobot_info()))
    camera = "observation.images.front"
    write_clip(root / "videos" / camera / "chunk-000" / "file-000.mp4", range(2 * num_episodes))
    tasks = {"task_index": list(range(len(ACTIONS))), "task": list(ACTIONS)}
    pq.write_table(pa.table(tasks), root / "meta" / "tasks.parquet")
    if subtasks:
        names = {"subtask_index": [0, 1], "__index_level_0__": ["reach for it", "lift it"]}
        pq.write_table(pa.table(names), root / "meta" / "subtasks.parquet")
    frames = [
        _lerobot_frame(episode, step, language=language, subtasks=subtasks)
        for episode in range(num_episodes)
        for step in range(10)
    ]
    pq.write_table(pa.Table.from_pylist(frames), root / "data/chunk-000/file-000.parquet")
    episodes = [
        {
            "episode_index": episode,
            "tasks": [ACTIONS[episode % len(ACTIONS)]],
            "length": 10,
            "data/chunk_index": 0,
            "data/file_index": 0,
            f"videos/{camera}/chunk_index": 0,
            f"videos/{camera}/file_index": 0,
            f"videos/{camera}/from_timestamp": float(episode),
            f"videos/{camera}/to_timestamp": float(episode + 1),
            "stats/action/mean": [0.0],
        }
        for episode in range(num_episodes)
    ]
    table = pa.Table.from_pylist(episodes)
    pq.write_table(table, root / "meta/episodes/chunk-000/file-000.parquet")
    return root


def _lerobot_frame(episode: int, step: int, *, language: bool, subtasks: bool) -> dict[str, object]:
    row: dict[str, object] = {
        "episode_index": episode,
        "frame_index": step,
        "timestamp": step / 10,
        "task_index": episode % len(ACTIONS),
        "observation.state": [0.0, 0.0],
    }
    if subtasks:
        row["subtask_index"] = step // 5
    if language:
        row["language_persistent"] = [
            {"role": "assistant", "content": words, "style": style, "timestamp": at}
            for words, style, at in (
                ("a plan of many words", "plan", 0.0),
                (f"reach in episode {episode}", "subtask", 0.0),
                (f"lift in episode {episode}", "subtask", 0.5),
            )
        ]
    return row


DATASET_WRITERS: dict[str, Callable[[Path], Path]] = {
    "aurora": write_aurora,
    "something": write_something,
    "epic": write_epic,
    "parquet": write_parquet,
    "lerobot": write_lerobot,
}
"""Per data set a function that writes a small one of at least 8 usable pairs, or 4 for lerobot."""


def write_folder(root: Path) -> None:
    for number in range(4):
        write_clip(root / f"class{number % 2}" / f"{number}.mp4", range(number, number + 6))


def write_ucf101(root: Path) -> None:
    for number, clip_class in enumerate(("Basketball", "Biking", "Basketball", "Biking")):
        name = f"v_{clip_class}_g{number + 1:02d}_c01.avi"
        write_clip(root / clip_class / name, range(number, number + 6))


def write_kinetics700(root: Path) -> None:
    for number, clip_class in enumerate(("playing guitar", "passing American football (in game)")):
        for start in (10, 35):
            name = f"-aB_cD{number}fGhI_{start:06d}_{start + 10:06d}.mp4"
            shade = number + start
            write_clip(root / "train" / clip_class / name, range(shade, shade + 6))


def write_moments(root: Path) -> None:
    for number, clip_class in enumerate(("adult+male+singing", "closing")):
        for part in range(2):
            name = f"flickr-1-{number}-{part}.mp4"
            shade = 20 * number + 3 * part
            write_clip(root / "training" / clip_class / name, range(shade, shade + 6))


def add_member(tar: tarfile.TarFile, name: str, payload: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(payload)
    tar.addfile(member, io.BytesIO(payload))


def write_webdataset(root: Path) -> None:
    for shard in range(2):
        root.mkdir(parents=True, exist_ok=True)
        with tarfile.open(root / f"shard-{shard:06d}.tar", "w") as tar:
            for number in range(2):
                clip = root / "clip.mp4"
                write_clip(clip, range(10 * shard + number, 10 * shard + number + 6))
                add_member(tar, f"{shard}{number:05d}.mp4", clip.read_bytes())
                label = json.dumps({"class": f"kind {number}"}).encode()
                add_member(tar, f"{shard}{number:05d}.json", label)
                clip.unlink()


SOURCE_WRITERS: dict[str, Callable[[Path], None]] = {
    "folder": write_folder,
    "ucf101": write_ucf101,
    "kinetics700": write_kinetics700,
    "moments": write_moments,
    "webdataset": write_webdataset,
}
"""Per source a function that writes four clips of five changes each, in two classes."""
