"""Work on nodes and GPUs that are lost, announced to go, added, or missing."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dynamics.core.config import REPOSITORY_ROOT, LoopConfig
from dynamics.core.config_file import with_overrides
from dynamics.storage.run_folder import RunFolder
from tests.runs import Driver, run_local

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
Run = Callable[[str], dict[str, Any]]
ON_FOUR_GPUS = [
    "label.num_actors=4",
    "label.num_gpus_per_actor=1",
    "evaluate.num_actors=4",
    "train.num_workers=2",
    "train.num_gpus_per_worker=1",
    "train.schedule=sequence",
    "train.strategy=fsdp2",
    "serve.enabled=false",
]
"""Only Ray's books have GPUs: models are on CPUs."""


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

    return run_case


def test_four_gpus_then_two_then_four_have_the_loss_of_one_process(run: Run) -> None:
    found = run("resized")
    assert found["workers"] == [4, 2, 4]
    assert found["loss"] == pytest.approx(found["alone"], abs=1e-5)


def test_a_node_that_is_announced_to_go_costs_no_failure_and_leaves_a_checkpoint(run: Run) -> None:
    found = run("announced")
    assert found["saved"][0] < 300
    assert found["loss"] == pytest.approx(found["alone"], abs=1e-5)


def test_a_cluster_without_gpus_for_the_fewest_workers_says_so_within_a_minute(run: Run) -> None:
    found = run("starved")
    assert found["seconds"] < 60
    assert "needs 3 x (1 CPU + 1 GPU); the nodes have room for 1" in found["error"]


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head without CPUs."""
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    yield found
    found.shutdown()


def test_four_gpus_then_two_four_and_one_between_rounds_have_the_losses_of_one_process(
    cluster: Any, small: LoopConfig, tmp_path: Path
) -> None:
    settings = ["rounds=3", "train.first_steps=50", "train.round_steps=20"]
    alone = run_local(with_overrides(small, settings), tmp_path / "alone")
    run_dir, workers = tmp_path / "run", dict[str, set[str]]()
    nodes = [cluster.add_node(num_cpus=3, num_gpus=2) for _ in range(2)]
    driver = Driver(
        cluster.address, run_dir, [*settings, f"model.base={small.model.base}", *ON_FOUR_GPUS]
    )

    def ended(number: int) -> bool:
        for path in run_dir.glob("rounds/*/train/checkpoints/*/*-*of*.safetensors"):
            round_id = path.relative_to(run_dir / "rounds").parts[0]
            workers.setdefault(round_id, set()).add(path.name.split("-")[1].partition("of")[2])
        return (run_dir / f"rounds/round-0{number}/report.json").exists()

    driver.wait_until(lambda: ended(0))
    cluster.remove_node(nodes.pop(), allow_graceful=False)
    driver.wait_until(lambda: ended(1))
    nodes.append(cluster.add_node(num_cpus=3, num_gpus=2))
    driver.wait_until(lambda: ended(2))
    cluster.add_node(num_cpus=3, num_gpus=1)
    for node in nodes:
        cluster.remove_node(node, allow_graceful=False)
    driver.wait_until(lambda: ended(3))
    driver.process.send_signal(signal.SIGINT)  # the last report takes minutes
    assert driver.process.wait(timeout=60) == 130, driver.said
    assert workers == {f"round-0{n}": {size} for n, size in enumerate("4241")}
    for expected in alone:
        report = RunFolder(run_dir).report(expected.round_id)
        assert report is not None
        assert report.train == pytest.approx(expected.train, abs=1e-5)
        assert report.num_labelled == expected.num_labelled


def test_a_stage_that_asks_for_gpus_where_there_are_none_says_so_within_a_minute(
    cluster: Any, small: LoopConfig, tmp_path: Path
) -> None:
    cluster.add_node(num_cpus=3)
    overrides = [f"model.base={small.model.base}", "ingest.num_gpus_per_actor=1"]
    driver = Driver(cluster.address, tmp_path / "run", overrides)
    driver.wait_until(lambda: "ingest labelled" in driver.said)
    assert driver.process.wait(timeout=60) == 2
    line = "error: ingest labelled needs 1 x (1 CPU + 1 GPU); the nodes have room for 0: "
    assert line in driver.said
    assert "Traceback" not in driver.said
