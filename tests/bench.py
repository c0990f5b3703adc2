"""A small folder in AURORA-BENCH's layout, of real picture files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

CELLS = ("a1", "a2", "a3", "b1", "b2", "b3")
"""Words that the base of the tests knows."""


def draw(path: Path, size: tuple[int, int], at: int, noise: int) -> None:
    """A textured ground with a white square at ``at``."""
    rng = np.random.default_rng(noise)
    picture = Image.fromarray(rng.integers(60, 90, (size[1], size[0], 3), dtype=np.uint8))
    ImageDraw.Draw(picture).rectangle((at, 8, at + 20, 28), fill="white")
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def write_bench(
    root: Path, change: Callable[[list[Any]], None] = lambda rows: None, copies: int = 1
) -> Path:
    """Four pairs of three subsets, ``copies`` times with other instructions.

    ``change`` may edit the manifest's rows before they are written.
    """
    rows: list[Any] = []
    sizes = [("ag", (64, 48)), ("ag", (48, 64)), ("kubric", (40, 40)), ("whatsup", (64, 64))]
    for number, (task, size) in enumerate(sizes):
        name = f"data/{task}/{number}"
        draw(root / f"{name}-a.png", size, 2, number)
        draw(root / f"{name}-b.png", size, 16, number)
        row = {"input": f"{name}-a.png", "output": f"{name}-b.png", "task": task}
        rows.append({**row, "instruction": f"push the red ring {CELLS[number]}"})
    for number in range(1, copies):
        said = f"take the ring away {CELLS[-number]}"
        rows += [{**row, "instruction": said} for row in rows[: len(sizes)]]
    change(rows)
    (root / "test.json").write_text(json.dumps(rows))
    return root
