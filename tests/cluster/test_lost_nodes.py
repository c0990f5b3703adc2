"""Nodes of a cluster are lost while they work: one command goes on to the same results."""

import json
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from dynamics.core.config import LoopConfig
from dynamics.core.config_file import with_overrides
from tests.runs import Driver, kept_results, run_local, runs_below
from tests.serving import free_port

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

SETTINGS = ["ingest.part_clips=1", "evaluate.batch_size=1", "train.first_steps=200"]
"""Many units of work, so that a stage goes on for a while after its first one."""
WORKER, TRAINER, REPLICA = b"ray::MapBatches", b"ray::RayTrainWorker", b"ServeReplica:dynamics:"
LOSSES = (
    ("data/pool.parts/units/*", WORKER, "data/pool.parts/manifest.json"),
    ("rounds/round-00/train/idm.jsonl", TRAINER, "rounds/round-00/train/summary.json"),
    ("rounds/round-00/results/*.parquet", WORKER, "rounds/round-00/results.parquet"),
    ("ledger/attempts/round-01/*.parquet", WORKER, "ledger/rounds/round-01.json"),
)
"""What is there when a stage has begun, the process whose node is lost then, and what is there when
the stage has ended."""


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head without CPUs, and two nodes that share its disk."""
    from ray.cluster_utils import Cluster

    # As docs/DESIGN.md asks of every `ray start`.
    middlewares = "dynamics.serving.http.proxy_limit.middlewares"
    monkeypatch.setenv("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", middlewares)
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(2):
        found.add_node(num_cpus=2)
    yield found
    found.shutdown()


def kill_node_of(cluster: Any, title: bytes) -> None:
    """Kill the node on which a process of this title is the first one seen."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        for node in cluster.worker_nodes:
            (raylet,) = node.all_processes["raylet"]
            if runs_below(raylet.process.pid, title):
                cluster.remove_node(node, allow_graceful=False)
                return
    raise AssertionError(f"no {title!r} runs")


def test_a_node_lost_in_each_stage_and_under_the_service_costs_no_row_and_no_hand(
    cluster: Any, small: LoopConfig, tmp_path: Path
) -> None:
    expected, run_dir, port = tmp_path / "unbroken", tmp_path / "run", free_port()
    run_local(with_overrides(small, SETTINGS), expected)
    own = [f"model.base={small.model.base}", f"train.round_steps={small.train.round_steps}"]
    overrides = [*SETTINGS, *own, f"serve.port={port}"]
    driver = Driver(cluster.address, run_dir, overrides, "--serve")
    for begun, title, ended in LOSSES:
        driver.wait_until(lambda begun=begun: list(run_dir.glob(begun)))
        kill_node_of(cluster, title)
        assert not (run_dir / ended).exists()
        cluster.add_node(num_cpus=2)
    driver.wait_until(lambda: "serving until Ctrl-C" in driver.said)
    assert kept_results(run_dir) == kept_results(expected)
    request = json.loads((run_dir / "example-request.json").read_text())

    def ask() -> httpx.Response:
        return httpx.post(f"http://127.0.0.1:{port}/v1/predict", json=request, timeout=60)

    answer = ask().json()
    assert answer["round"] == 1
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask) for _ in range(100)]
        while not any(reply.done() for reply in asked):
            time.sleep(0.01)
        kill_node_of(cluster, REPLICA)
        assert all(reply.result().json() == answer for reply in asked)
    driver.process.send_signal(signal.SIGINT)
    assert driver.process.wait(timeout=60) == 0, driver.said
