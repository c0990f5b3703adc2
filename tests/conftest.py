from __future__ import annotations

import gc
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import numpy as np
import pytest

from dynamics.core.config import REPOSITORY_ROOT, ClusterConfig, LoopConfig, WorldConfig
from dynamics.core.config_file import load
from dynamics.core.places import StorePath
from ray_jobs import runtime

if TYPE_CHECKING:  # slow to import
    from tests.runs import LocalRun

SHARED = REPOSITORY_ROOT.parent / "shared"

runtime.prepare_environment()
gc.disable()  # until all is imported: nothing of it is garbage


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--hide-shared", action="store_true", help="as if there were no ../shared")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark every test that reads ../shared, by the only fixture that leads there."""
    if "real_bench" in getattr(item, "fixturenames", ()):
        item.add_marker("shared")


def pytest_collection_finish() -> None:
    """Take what was imported out of every later garbage collection."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def real_bench(pytestconfig: pytest.Config) -> Path:
    """AURORA-BENCH's folder of 50 real pairs, whose licences keep it out of the repository."""
    folder = SHARED / "aurora-bench"
    if pytestconfig.getoption("hide_shared") or not (folder / "test.json").is_file():
        pytest.skip("no ../shared/aurora-bench beside the checkout")
    return folder


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """The one Ray of the whole session: starting it costs seconds."""
    runtime.ensure_ray(ClusterConfig())
    yield
    runtime.stop_ray()


@pytest.fixture(scope="session")
def untrained_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real checkpoint of the smallest size for the 3x3 world, at random initialisation."""
    import torch

    from dynamics.pretraining.base import BaseRecipe
    from tests.bases import write_base

    base = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    sizes = BaseRecipe(width=32, layers=1, heads=2, feed_forward=64)
    write_base(base, WorldConfig(grid=3, min_objects=2, max_objects=3), sizes)
    return base


@pytest.fixture(scope="session")
def small(untrained_base: Path) -> LoopConfig:
    """tests/test-3x3.yaml on the untrained base; every stage takes a second or so."""
    overrides = [f"model.base={untrained_base}", "train.first_steps=150", "train.round_steps=8"]
    return load(REPOSITORY_ROOT / "tests" / "test-3x3.yaml", overrides)


@pytest.fixture(scope="session")
def local_run(small: LoopConfig, tmp_path_factory: pytest.TempPathFactory) -> LocalRun:
    """The unbroken run that every other way of running is compared with."""
    from tests.runs import LocalRun, StopAt, run_local

    folder = tmp_path_factory.mktemp("local-run")
    progress = StopAt()
    run_local(small, folder, progress=progress)
    return LocalRun(folder, len(progress.seen))


@pytest.fixture
def film() -> Callable[..., np.ndarray]:
    """Frames of a table on which one of three squares jumps every ``hold`` frames."""

    colours = np.array(
        [[230, 40, 35], [35, 190, 65], [50, 97, 250], [247, 220, 46]], dtype=np.uint8
    )

    def make(
        seed: int, *, num_actions: int = 6, hold: int = 3, size: int = 128, noise: int = 3
    ) -> np.ndarray:
        rng = np.random.default_rng(seed)
        cell = size // 4
        places = rng.permutation(16)[:3]
        states = [places.copy()]
        for _ in range(num_actions):
            free = np.setdiff1d(np.arange(16), places)
            places[rng.integers(3)] = rng.choice(free)
            states.append(places.copy())
        frames = []
        for state in states:
            canvas = np.full((size, size, 3), 70, dtype=np.int16)
            for place, colour in zip(state, colours, strict=False):
                top, left = place // 4 * cell + cell // 5, place % 4 * cell + cell // 5
                canvas[top : top + cell * 3 // 5, left : left + cell * 3 // 5] = colour
            frames += [
                np.clip(canvas + rng.integers(-noise, noise + 1, canvas.shape), 0, 255)
                for _ in range(hold)
            ]
        return np.stack(frames).astype(np.uint8)

    return make


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    """The one S3 server of the session: starting it costs a second."""
    from tests.stores import s3_server

    with s3_server() as url:
        yield url


@pytest.fixture
def s3(s3_url: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StorePath]:
    """A folder of an S3 bucket for one test, and an empty cache."""
    from tests.stores import BUCKET, at_store

    with at_store(s3_url), mock.patch.dict("os.environ", DYNAMICS_CACHE=str(tmp_path / "cache")):
        yield StorePath(f"s3://{BUCKET}/{request.node.name}-{secrets.token_hex(4)}")
