"""A node of three is lost while it works: the same command goes on to the same results."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dynamics.core.config import REPOSITORY_ROOT, LoopConfig
from dynamics.core.config_file import with_overrides
from tests.runs import descendants, kept_results, run_local

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head without CPUs, and two nodes that share its disk."""
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(2):
        found.add_node(num_cpus=2)
    yield found
    found.shutdown()


def kill_node_of(cluster: Any, title: bytes) -> bool:
    """Kill the node, if there is one, on which a process of this title runs."""
    for node in cluster.worker_nodes:
        (raylet,) = node.all_processes["raylet"]
        for pid in descendants(raylet.process.pid):
            if title in Path(f"/proc/{pid}/cmdline").read_bytes():
                cluster.remove_node(node, allow_graceful=False)
                return True
    return False


@pytest.fixture(scope="module")
def expected(small: LoopConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unbroken run in one process, with units of one clip."""
    folder = tmp_path_factory.mktemp("unbroken")
    run_local(with_overrides(small, ["ingest.part_clips=1"]), folder)
    return folder


@pytest.mark.parametrize(
    ("begun", "title"),
    [
        pytest.param("data/pool.parts/units/*", b"ray::MapWorker", id="ingest"),
        pytest.param("ledger/attempts/round-01/*.parquet", b"ray::MapWorker", id="label"),
        pytest.param("rounds/round-01/train/idm.jsonl", b"ray::RayTrainWorker", id="train"),
    ],
)
def test_a_lost_node_costs_no_row_and_no_hand(
    cluster: Any, begun: str, title: bytes, small: LoopConfig, expected: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    overrides = [
        f"model.base={small.model.base}",
        f"train.first_steps={small.train.first_steps}",
        f"train.round_steps={small.train.round_steps}",
        "ingest.part_clips=1",
        "serve.enabled=false",
    ]
    command = "ray_jobs/bootstrap.py --config tests/test-3x3.yaml --run-dir"
    driver = subprocess.Popen(
        [sys.executable, *command.split(), str(run_dir), *overrides],
        env={**os.environ, "RAY_ADDRESS": cluster.address},
        cwd=REPOSITORY_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while not list(run_dir.glob(begun)):
        assert driver.poll() is None, driver.stdout and driver.stdout.read()
        time.sleep(0.02)
    assert kill_node_of(cluster, title)
    output, _ = driver.communicate(timeout=600)
    assert driver.returncode == 0, output
    assert kept_results(run_dir) == kept_results(expected)
