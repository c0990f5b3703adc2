"""What kills and lost calls cost: the time until the next label, and labels made twice."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dynamics.core.config import LoopConfig
from tests.integration.test_bootstrap import alive, arguments, is_agent, wait_until
from tests.runs import LocalRun, descendants, results

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

MOST_S = 30.0
"""Longest time on two free cores from the command to its first new label."""
CALLS = (
    "CoreWorkerService.grpc_client.PushTask",
    "NodeManagerService.grpc_client.RequestWorkerLease",
    "CoreWorkerService.grpc_client.GetObjectStatus",
)


def start(command: list[str]) -> "subprocess.Popen[bytes]":
    """The command, in a process group of its own."""
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )


def kill(driver: "subprocess.Popen[bytes]") -> None:
    """End a driver and its group at once, and wait until its Ray has followed."""
    workers = {pid for pid in descendants(driver.pid) if not is_agent(pid)}
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    wait_until(lambda: not alive(workers), "Ray to die with its driver", 60)


def test_after_a_kill_labels_go_on_soon_and_none_that_was_written_is_made_again(
    small: LoopConfig, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    attempts = tmp_path / "run" / "ledger" / "attempts" / "round-01"
    command = [*arguments(small, tmp_path / "run"), "label.shard_rows=4"]
    written: dict[Path, int] = {}

    def newer() -> set[Path]:
        return set(attempts.glob("*.parquet")) - set(written)

    seconds = []
    for _ in range(3):
        driver, began = start(command), time.monotonic()
        wait_until(newer, "the next label")
        seconds.append(round(time.monotonic() - began, 1))
        kill(driver)
        now = {path: path.stat().st_mtime_ns for path in attempts.glob("*.parquet")}
        assert now.items() >= written.items()
        written |= now
    assert start(command).wait(timeout=600) == 0
    spans = sorted(tuple(map(int, path.name.split("-")[1:3])) for path in attempts.iterdir())
    assert [first for first, _ in spans] == [0, *[stop for _, stop in spans]][:-1]
    record_property("seconds", seconds)
    assert max(seconds[1:]) < MOST_S  # the first start has round 0 to do as well


def test_a_quarter_of_rays_own_calls_fail_and_the_labels_are_the_same(
    small: LoopConfig, local_run: LocalRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels only: Ray Train starts the workers of a fit all at once, or not at all."""
    folder = Path(shutil.copytree(local_run.folder, tmp_path / "run"))
    for made in ("rounds/round-01", "ledger"):
        shutil.rmtree(folder / made)
    fault = {"num_failures": 100, "req_failure_prob": 25, "resp_failure_prob": 25}
    monkeypatch.setenv("RAY_testing_rpc_failure", json.dumps(dict.fromkeys(CALLS, fault)))
    driver = start([*arguments(small, folder), "label.shard_rows=2"])
    try:
        committed = folder / "ledger" / "rounds" / "round-01.json"
        wait_until(lambda: committed.exists() or driver.poll() is not None, "the labels")
    finally:
        kill(driver)
    expected = {name: data for name, data in results(local_run.folder).items() if "ledger" in name}
    assert {name: data for name, data in results(folder).items() if "ledger" in name} == expected
