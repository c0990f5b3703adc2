"""Worker processes and the end of the process that started them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from dynamics.evaluation.worker_pool import worker_pool

STARTS_A_WORKER = """
from dynamics.evaluation.worker_pool import worker_pool
import os, time
if __name__ == "__main__":
    pool = worker_pool(1, 1)
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(time.sleep, 600)
    time.sleep(600)
"""


def is_alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_busy_worker_ends_with_its_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "starts_a_worker.py"
    script.write_text(STARTS_A_WORKER)
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert is_alive(worker)
        parent.send_signal(signal.SIGKILL)
    until = time.monotonic() + 30
    while is_alive(worker) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_alive(worker)


def test_workers_are_other_processes_with_the_threads_asked_for() -> None:
    with worker_pool(1, 1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 1
        assert pool.submit(os.getpid).result() != os.getpid()
