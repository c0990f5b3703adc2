"""Real Ray Train on CPU workers, compared with the same fits in this process."""

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dynamics.core.config import LoopConfig
from dynamics.core.errors import UserError
from dynamics.core.progress import Progress, silent
from dynamics.storage.run_folder import TrainingLog
from dynamics.training.batches import FitJob
from dynamics.training.fit import WorkerContext, fit_adapter
from dynamics.training.loss import Task
from tests.runs import LocalRun, descendants

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("local_ray")]

MakeJob = Callable[..., FitJob]


@pytest.fixture
def make_job(small: LoopConfig, local_run: LocalRun, tmp_path: Path) -> MakeJob:
    def make(task: Task, name: str, steps: int, **train: object) -> FitJob:
        return FitJob(
            task=task,
            family=small.model.family,
            base=small.base_path(),
            device="cpu",
            transitions=local_run.folder / "data" / "labelled.parts",
            steps=steps,
            train=small.train.model_copy(update=train),
            seed=3,
            init_from=None,
            out=tmp_path / name / task,
            checkpoint_dir=tmp_path / name / "checkpoints" / task,
        )

    return make


def fit(jobs: dict[Task, FitJob], folder: Path, progress: Progress = silent) -> None:
    from ray_jobs.sight import make_sight
    from ray_jobs.train import fit_on_ray

    logs = {task: TrainingLog(folder / f"{task}.jsonl") for task in jobs}
    results = fit_on_ray(jobs, logs, 0, progress, make_sight(folder, ()))
    assert set(results) == set(jobs)


def weights(job: FitJob) -> dict[str, torch.Tensor]:
    return load_file(job.out / "adapter_model.safetensors")


def difference(first: FitJob, second: FitJob) -> float:
    one, other = weights(first), weights(second)
    assert set(one) == set(other)
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize(("schedule", "num_workers"), [("together", 2), ("sequence", 1)])
def test_ddp_workers_train_the_adapters_of_one(
    make_job: MakeJob, tmp_path: Path, schedule: str, num_workers: int
) -> None:
    tasks: tuple[Task, ...] = ("idm", "fdp")
    alone = {task: make_job(task, "alone", 4) for task in tasks}
    shared = {
        task: make_job(task, "ddp", 4, schedule=schedule, num_workers=num_workers) for task in tasks
    }
    for job in alone.values():
        fit_adapter(job)
    fit(shared, tmp_path)
    for task in tasks:
        assert difference(alone[task], shared[task]) < 1e-4


@pytest.mark.slow
def test_a_killed_worker_resumes_to_the_same_adapter(make_job: MakeJob, tmp_path: Path) -> None:
    calm = make_job("idm", "calm", 400, checkpoint_every=10)
    fit_adapter(calm, WorkerContext())
    killed = replace(calm, out=tmp_path / "killed", checkpoint_dir=tmp_path / "checkpoints" / "idm")
    victims: list[int] = []

    def kill_one_worker() -> None:
        while not TrainingLog(tmp_path / "idm.jsonl").last_step():
            time.sleep(0.05)
        victims.extend(train_workers())
        os.kill(victims[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_one_worker, daemon=True)
    killer.start()
    fit({"idm": killed}, tmp_path)
    killer.join(5)
    assert len(victims) == 1
    assert difference(calm, killed) == 0.0


@pytest.mark.slow
def test_training_that_gives_up_says_why_and_goes_on_once_that_is_mended(
    make_job: MakeJob, tmp_path: Path
) -> None:
    start = make_job("idm", "start", 2)
    fit_adapter(start)
    job = replace(make_job("idm", "broken", 4, max_failures=1), init_from=start.out)
    tensors = start.out / "adapter_model.safetensors"
    whole = tensors.read_bytes()
    tensors.write_bytes(b"no tensors")
    failure = tmp_path / "failure.txt"
    line = rf"^training gave up \(SafetensorError: .*; train.max_failures=1\); {failure} says more"
    with pytest.raises(UserError, match=line):
        fit({"idm": job}, tmp_path)
    assert "Traceback" in failure.read_text()
    tensors.write_bytes(whole)
    fit({"idm": job}, tmp_path)


def train_workers() -> list[int]:
    """Process ids of the Ray Train workers of this session's Ray."""
    titles = {pid: Path("/proc", str(pid), "cmdline") for pid in descendants(os.getpid())}
    return [pid for pid, path in titles.items() if b"RayTrainWorker" in path.read_bytes()]
