"""Training on nodes that are lost, announced to go, added, or missing."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dynamics.core.config import REPOSITORY_ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
Run = Callable[[str], dict[str, Any]]


@pytest.fixture
def run(untrained_base: Path, tmp_path: Path) -> Run:
    def run_case(case: str) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-m", "tests.elastic", case, str(untrained_base), str(tmp_path)],
            cwd=REPOSITORY_ROOT,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY_ROOT)},
            stdout=subprocess.PIPE,
            text=True,
            timeout=550,
        )
        assert done.returncode == 0
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    return run


def test_two_workers_then_one_then_two_have_the_loss_of_one(run: Run) -> None:
    found = run("resized")
    assert found["workers"] == [2, 1, 2]
    assert found["loss"] == pytest.approx(found["alone"], abs=1e-5)


def test_a_node_that_is_announced_to_go_costs_no_failure_and_leaves_a_checkpoint(run: Run) -> None:
    found = run("announced")
    assert found["saved"][0] < 300
    assert found["loss"] == pytest.approx(found["alone"], abs=1e-5)


def test_a_cluster_without_room_for_the_fewest_workers_says_so_within_a_minute(run: Run) -> None:
    found = run("starved")
    assert found["seconds"] < 60
    assert "needs 3 x (1 CPU); the nodes have room for 1" in found["error"]
