"""A small benchmark folder of real files, and the real one where it is present."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from dynamics.config import REPOSITORY_ROOT

SHARED = REPOSITORY_ROOT.parent / "shared" / "aurora-bench"


def draw(path: Path, size: tuple[int, int], at: int, noise: int) -> None:
    """A textured ground with a white square at ``at``."""
    rng = np.random.default_rng(noise)
    ground = rng.integers(60, 90, (size[1], size[0], 3), dtype=np.uint8)
    picture = Image.fromarray(ground)
    ImageDraw.Draw(picture).rectangle((at, 8, at + 20, 28), fill="white")
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


@pytest.fixture
def write_bench(tmp_path: Path) -> Callable[..., Path]:
    """Writes a folder of four pairs; rows may be changed or added before the manifest is."""

    def write(change: Callable[[list[Any]], None] = lambda rows: None) -> Path:
        root = tmp_path / "bench"
        rows: list[Any] = []
        for number, (task, size) in enumerate(
            [("ag", (64, 48)), ("ag", (48, 64)), ("kubric", (40, 40)), ("whatsup", (64, 64))]
        ):
            name = f"data/{task}/{number}"
            draw(root / f"{name}-a.png", size, 2, number)
            draw(root / f"{name}-b.png", size, 16, number)
            rows.append(
                {
                    "input": f"{name}-a.png",
                    "output": f"{name}-b.png",
                    "instruction": f"move the red cube {number}",
                    "task": task,
                }
            )
        change(rows)
        (root / "test.json").write_text(json.dumps(rows))
        return root

    return write


@pytest.fixture
def bench(write_bench: Callable[..., Path]) -> Path:
    return write_bench()


@pytest.fixture(scope="session")
def real_bench() -> Path:
    """The 50 pairs that are handed out beside the repository, which never hold them."""
    if not (SHARED / "test.json").is_file():
        pytest.skip(f"no AURORA-BENCH pairs in {SHARED}")
    return SHARED
