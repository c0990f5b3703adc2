"""Sessions over a few real clips."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from dynamics.annotate.session import Session, open_session
from dynamics.core.config import KeyframeConfig
from dynamics.data.video.encode import write_mp4

Opened = Callable[..., AbstractContextManager[Session]]


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight clips of seven pairs."""
    root = tmp_path_factory.mktemp("clips")
    for number in range(8):
        write_mp4(root / f"class{number % 2}" / f"{number}.mp4", jumps(number), 10)
    (root / "broken.mp4").write_bytes(b"nothing")
    return root


def jumps(seed: int) -> np.ndarray:
    """Frames of a red block that jumps seven times over a table, every five frames."""
    rng = np.random.default_rng(seed)
    frames = np.full((40, 48, 64, 3), 130, np.uint8)
    for step, left in enumerate(rng.permutation(8)):
        frames[5 * step : 5 * step + 5, 20:32, 6 * left : 6 * left + 12] = (200, 40, 30)
    return frames


@pytest.fixture
def opened(clips: Path) -> Opened:
    """Opens a session: ``opened(out, who)``."""
    keyframes = KeyframeConfig(top_k=8, spacing_frames=5)
    return partial(_opened, clips, keyframes)


def _opened(
    clips: Path, keyframes: KeyframeConfig, out: Path, who: str = "ana", **options: object
) -> AbstractContextManager[Session]:
    return open_session(clips, "folder", out, who, keyframes, **options)  # type: ignore[arg-type]


def asked(session: Session) -> Iterator[str]:
    """The pair that is asked about, again and again, as soon as there is one."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if task := session.state()["task"]:
            yield task["pair"]
        time.sleep(0.01)
