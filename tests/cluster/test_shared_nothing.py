"""Nodes that share no disk: a run whose places lie in a store comes out as on one machine."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest

from dynamics.core.config import LoopConfig
from dynamics.core.config_file import with_overrides
from dynamics.core.places import StorePath
from dynamics.storage.files import write_bytes
from tests.made_data import write_clip
from tests.nodes import Node, Nodes, nodes, why_no_nodes
from tests.runs import kept_results, run_local, runs_below
from tests.stores import BUCKET, at_store, s3_server, store_environment, upload

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(why_no_nodes()), reason=f"no namespaces: {why_no_nodes()}"),
]
SETTINGS = ["pool.keyframes.spacing_frames=4", "ingest.part_clips=1"]
Found = TypeVar("Found")
STORE = StorePath(f"s3://{BUCKET}")


@dataclass(frozen=True)
class Expected:
    """A run on this machine, whose base and videos lie in the store, too."""

    cfg: LoopConfig
    folder: Path
    environment: dict[str, str]


@pytest.fixture(scope="module")
def expected(small: LoopConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Expected]:
    """The unbroken run in one process, and a store for the others."""
    videos = tmp_path_factory.mktemp("videos")
    for number in range(12):
        write_clip(videos / f"kind{number % 3}" / f"{number}.mp4", range(number, number + 6))
    folder = tmp_path_factory.mktemp("one-machine")
    cfg = with_overrides(small, [*SETTINGS, f"pool.path={videos}"])
    run_local(cfg, folder)
    with s3_server() as url, at_store(url):
        upload(videos, STORE / "videos")
        upload(small.base_path(), STORE / small.base_path().name)
        yield Expected(cfg, folder, store_environment(url))


@pytest.fixture
def cluster(expected: Expected, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """No node yet; none will see what tests write on this machine."""
    with nodes([tmp_path_factory.getbasetemp()], expected.environment) as found:
        yield found


def start(cluster: Nodes, run_dir: StorePath, small: LoopConfig) -> "subprocess.Popen[str]":
    """The command, on the head."""
    train = small.train
    overrides = [
        *SETTINGS,
        f"model.base={STORE}/{small.base_path().name}",
        f"pool.path={STORE}/videos",
        f"train.first_steps={train.first_steps}",
        f"train.round_steps={train.round_steps}",
        "serve.enabled=false",
    ]
    command = f"ray_jobs/bootstrap.py --config tests/test-3x3.yaml --run-dir {run_dir}"
    return cluster.head.popen(
        [sys.executable, *command.split(), *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def wait(driver: "subprocess.Popen[str]", until: Callable[[], Found | None]) -> Found:
    """What ``until`` finds in the end; it is an error when the driver ends before."""
    while not (found := until()):
        assert driver.poll() is None, driver.communicate()[0]
        time.sleep(0.05)
    return found


def finish(driver: "subprocess.Popen[str]") -> None:
    output, _ = driver.communicate(timeout=600)
    assert driver.returncode == 0, output


def working(cluster: Nodes, title: bytes) -> Node | None:
    """A node on which a process of this title runs."""
    return next((one for one in cluster.alive if runs_below(one.process.pid, title)), None)


@pytest.mark.slow
def test_two_nodes_ingest_and_label_to_the_tables_of_one_machine(
    cluster: Nodes, expected: Expected, small: LoopConfig
) -> None:
    run_dir = STORE / "two-nodes"
    for begun in ("run.json", "rounds/round-00"):  # trained before: this test is about data
        place = expected.folder / begun
        files = [place] if place.is_file() else [p for p in place.rglob("*") if p.is_file()]
        for path in files:
            name = path.relative_to(expected.folder).as_posix()
            write_bytes(run_dir / name, path.read_bytes())
    cluster.add(num_cpus=2)
    cluster.add(num_cpus=2)
    driver = start(cluster, run_dir, small)
    wait(driver, lambda: list((run_dir / "ledger" / "rounds").glob("*")))
    driver.kill()
    found, wanted = kept_results(run_dir), kept_results(expected.folder)
    assert {"data/pool.parts/manifest.json", "ledger/rounds/round-01.json"} <= set(found)
    assert [name for name in found if found[name] != wanted[name]] == []


@pytest.mark.slow
def test_a_run_on_three_nodes_equals_one_on_one_machine(
    cluster: Nodes, expected: Expected, small: LoopConfig
) -> None:
    for _ in range(3):
        cluster.add(num_cpus=2)
    run_dir = STORE / "three-nodes"
    finish(start(cluster, run_dir, small))
    assert kept_results(run_dir) == kept_results(expected.folder)


@pytest.mark.slow
def test_nodes_that_are_lost_and_replaced_cost_no_row_and_no_hand(
    cluster: Nodes, expected: Expected, small: LoopConfig
) -> None:
    cluster.add(num_cpus=0)
    for _ in range(2):
        cluster.add(num_cpus=2)
    run_dir = STORE / "lost-nodes"
    driver = start(cluster, run_dir, small)
    for begun, title in (
        (run_dir / "data" / "pool.parts" / "units", b"ray::MapBatches"),
        (run_dir / "ledger" / "attempts" / "round-01", b"ray::MapBatches"),
        (run_dir / "rounds" / "round-01" / "train" / "checkpoints", b"ray::RayTrainWorker"),
    ):
        wait(driver, begun.is_dir)
        wait(driver, partial(working, cluster, title)).kill()
        cluster.add(num_cpus=2)
    finish(driver)
    assert kept_results(run_dir) == kept_results(expected.folder)
