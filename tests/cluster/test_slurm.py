"""deploy/slurm.sh with a real Ray of two nodes; only Slurm's own commands are made up."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dynamics.core.config import REPOSITORY_ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
trap 'kill -TERM $(jobs -p); wait' TERM
for node in 0 1; do SLURM_PROCID=$node "$@" & done
wait
"""
SCONTROL = '#!/usr/bin/env bash\necho "$@" >> "$CALLS"\n'
DRIVER = """
import sys, time
sys.path.insert(0, {root!r})
from dynamics.core.config import ClusterConfig
from ray_jobs import bootstrap, runtime

def nap():
    time.sleep(600)

def run(parsed):
    import ray
    runtime.ensure_ray(ClusterConfig())
    while ray.cluster_resources().get("CPU") != 4:
        time.sleep(0.5)
    print("rounds", parsed.rounds, "on", len(ray.nodes()), "nodes", flush=True)
    if parsed.rounds == "1":
        return 0
    ray.get(ray.remote(nap).remote())

bootstrap._run = run
sys.exit(bootstrap.main())
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    (folder / "ray_jobs").mkdir(parents=True)
    (folder / ".venv").symlink_to(Path(sys.prefix))
    (folder / "ray_jobs" / "bootstrap.py").write_text(DRIVER.format(root=str(REPOSITORY_ROOT)))
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return folder


def started(checkout: Path, *arguments: str) -> subprocess.Popen[str]:
    slurm = {
        "SLURM_SUBMIT_DIR": str(checkout),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_CPUS_ON_NODE": "2",
        "CALLS": str(checkout / "calls"),
        "PATH": f"{checkout.parent}:{os.environ['PATH']}",
    }
    script = REPOSITORY_ROOT / "deploy" / "slurm.sh"
    with (checkout / "log").open("w") as log:
        return subprocess.Popen(
            ["bash", str(script), *arguments],
            env=os.environ | slurm,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
        )


def wait_for(line: str, job: subprocess.Popen[str], log: Path) -> None:
    deadline = time.monotonic() + 120
    while line not in log.read_text():
        assert job.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


def test_a_job_ends_with_its_driver(checkout: Path) -> None:
    job = started(checkout, "--rounds", "1")
    assert job.wait(180) == 0, (checkout / "log").read_text()
    assert "rounds 1 on 2 nodes" in (checkout / "log").read_text()
    assert not (checkout / "calls").exists()


@pytest.mark.parametrize(
    ("sent", "requeued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)], ids=["time", "cancel"]
)
def test_a_job_whose_time_is_up_queues_itself_again(
    checkout: Path, sent: signal.Signals, requeued: bool
) -> None:
    job = started(checkout, "--rounds", "3")
    wait_for("rounds 3 on 2 nodes", job, checkout / "log")
    job.send_signal(sent)
    assert job.wait(60) == 130, (checkout / "log").read_text()
    said = (checkout / "log").read_text()
    assert "interrupted; the same command resumes" in said
    assert "*** SIGTERM" not in said
    assert (checkout / "calls").exists() == requeued


def test_a_checkout_without_an_environment_is_one_line(checkout: Path) -> None:
    (checkout / ".venv").unlink()
    job = started(checkout)
    assert job.wait(20) == 2
    assert (checkout / "log").read_text().count("\n") == 1
