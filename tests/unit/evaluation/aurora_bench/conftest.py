"""A small benchmark folder of real files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import bench as folders


@pytest.fixture
def write_bench(tmp_path: Path) -> Callable[..., Path]:
    """Writes a folder of four pairs, after a change of the manifest's rows."""

    def write(change: Callable[[list[Any]], None] = lambda rows: None, copies: int = 1) -> Path:
        return folders.write_bench(tmp_path / "bench", change, copies)

    return write


@pytest.fixture
def bench(write_bench: Callable[..., Path]) -> Path:
    return write_bench()
