"""Clocks that jump, and files whose times say nothing: the same rows, the same adapters."""

import os
import random
import time
from pathlib import Path

import pytest

from dynamics.core.config import LoopConfig
from tests.runs import LocalRun, Stop, StopAt, results, run_local

DAY_S = 86_400
real_time = time.time


@pytest.mark.slow  # a whole run, in pieces
def test_a_clock_that_jumps_by_days_changes_no_result(
    small: LoopConfig, local_run: LocalRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, calls = random.Random(0), 0

    def jumping() -> float:
        return real_time() + rng.choice((-DAY_S, 0, DAY_S)) + rng.uniform(-1, 1)

    monkeypatch.setattr(time, "time", jumping)
    monkeypatch.setattr(time, "time_ns", lambda: int(1e9 * jumping()))
    while True:
        calls += local_run.num_progress_calls // 4 + 1
        try:
            run_local(small, tmp_path, progress=StopAt(calls))
            break
        except Stop:  # every file gets another age, so that no newest one is the newest
            for path in tmp_path.rglob("*"):
                at = real_time() + rng.uniform(-DAY_S, DAY_S)
                os.utime(path, (at, at))
    assert results(tmp_path) == results(local_run.folder)
