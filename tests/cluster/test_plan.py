"""`dynamics plan` beside a real run on this machine's CPUs."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from dynamics.core.config import REPOSITORY_ROOT
from dynamics.core.config_file import load
from dynamics.plan import make_plan
from dynamics.plan.cluster import this_machine
from dynamics.plan.hours import measured_core
from tests.serving import free_port

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def test_a_small_run_takes_between_half_and_twice_the_planned_time(tmp_path: Path) -> None:
    overrides = [
        "rounds=1",
        "pool.num_pairs=2000",
        "labelled.num_pairs=1000",
        "labelled.num_heldout=200",
        "train.first_steps=150",
        "train.round_steps=100",
        "evaluate.num_best_of_items=40",
        "guards.accept=[copy_rate,caption_collapse,type_skew,calibration_drift]",
        f"serve.port={free_port()}",
    ]
    core, begun = measured_core(), time.monotonic()
    command = [sys.executable, "ray_jobs/bootstrap.py", "--run-dir", str(tmp_path / "run")]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run([*command, *overrides], cwd=REPOSITORY_ROOT, env=environment, timeout=900)
    seconds = time.monotonic() - begun
    assert done.returncode == 0
    # Other work on the machine: as fast as at the start and at the end on average.
    tflops = (core.tflops + measured_core().tflops) / 2
    cfg = load(REPOSITORY_ROOT / "configs" / "tabletop.yaml", overrides)
    plan = make_plan(cfg, this_machine(), replace(core, tflops=tflops))
    assert 0.5 < seconds / (3600 * plan.wall) < 2, plan.hours
