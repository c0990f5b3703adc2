"""A small benchmark folder of real files, and the real one where it is present."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dynamics.config import REPOSITORY_ROOT
from tests import bench as folders

SHARED = REPOSITORY_ROOT.parent / "shared" / "aurora-bench"


@pytest.fixture
def write_bench(tmp_path: Path) -> Callable[..., Path]:
    """Writes a folder of four pairs, after a change of the manifest's rows."""

    def write(change: Callable[[list[Any]], None] = lambda rows: None, copies: int = 1) -> Path:
        return folders.write_bench(tmp_path / "bench", change, copies)

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
