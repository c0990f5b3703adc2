"""A fixed camera over a table where a gripper pushes blocks: data that nobody has trained on."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dynamics.core.images import encode_png
from dynamics.data.video.encode import write_mp4

BLOCKS = {"crimson": (150, 42, 48), "teal": (38, 118, 122), "amber": (186, 132, 46)}
WAYS = {"left": (-1, 0), "right": (1, 0), "forwards": (0, -1), "backwards": (0, 1)}
SENTENCES = [f"push the {block} block {way}" for block in BLOCKS for way in WAYS]
SIDE = 96
_BLOCK, _PUSH, _FRAMES = 9, 11.0, 12


def frames(sentence: str, rng: np.random.Generator) -> np.ndarray:
    """A push, uint8 [12, SIDE, SIDE, 3]."""
    _, _, pushed, _, way = sentence.split()
    at = {block: rng.uniform(26, SIDE - 26, 2) for block in BLOCKS}
    step = np.array(WAYS[way]) * _PUSH
    shown = []
    for number in range(_FRAMES):
        moved = at | {pushed: at[pushed] + step * min(1.0, number / (_FRAMES - 2))}
        shown.append(_draw(moved, moved[pushed] - np.array(WAYS[way]) * (_BLOCK + 1), rng))
    return np.stack(shown)


def _draw(
    blocks: dict[str, np.ndarray], gripper: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Wood with grain, a shadowed edge, blocks, a grey gripper on its arm; the sensor's noise."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    wood = 118 + 9 * np.sin(rows / 3.1 + 0.7 * np.sin(columns / 11)) - 0.25 * columns
    frame = wood[..., None] * np.array([1.05, 0.86, 0.62])
    frame[:9] *= 0.55
    for block, (x, y) in blocks.items():
        _square(frame, x + 2, y + 2, _BLOCK, (52, 42, 32))
        _square(frame, x, y, _BLOCK, BLOCKS[block])
    x, y = gripper
    frame[: int(y), int(x) - 2 : int(x) + 2] = (92, 94, 98)
    _square(frame, x, y, 7, (120, 122, 126))
    return np.clip(frame + rng.normal(0, 1.5, frame.shape), 0, 255).astype(np.uint8)


def _square(frame: np.ndarray, x: float, y: float, side: int, colour: tuple[int, int, int]) -> None:
    left, top = round(x - side / 2), round(y - side / 2)
    frame[max(0, top) : top + side, max(0, left) : left + side] = colour


def film(folder: Path, num: int) -> None:
    """Clips, a push each."""
    folder.mkdir(parents=True)
    for number in range(num):
        rng = np.random.default_rng(number)
        sentence = SENTENCES[number % len(SENTENCES)]
        write_mp4(folder / f"clip-{number:03d}.mp4", frames(sentence, rng), 6)


def write_labels(path: Path, numbers: Sequence[int]) -> None:
    """The first and the last frame of some clips with their sentence, as people annotate them."""
    rows = []
    for number in numbers:
        rng = np.random.default_rng(number)
        sentence = SENTENCES[number % len(SENTENCES)]
        ends = frames(sentence, rng)[[0, -1]]
        rows.append(
            {
                "source_image": encode_png(ends[0]),
                "target_image": encode_png(ends[1]),
                "action": sentence,
                "clip_path": f"clip-{number:03d}.mp4",
            }
        )
    pq.write_table(pa.Table.from_pylist(rows), path)
