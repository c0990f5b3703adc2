"""A fit killed at any moment of a save, or left with damaged checkpoints, ends in equal bytes."""

import os
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from dynamics.core.config import LoraConfig, TrainConfig
from dynamics.storage.files import checkpoint_digest
from dynamics.training import checkpoints
from dynamics.training.batches import FitJob
from dynamics.training.checkpoints import Checkpoints
from dynamics.training.fit import WorkerContext, fit_adapter
from tests.unit.training.test_fit import fit_job

TRAIN = TrainConfig(batch_size=2, checkpoint_every=1, warmup_steps=1, lora=LoraConfig(r=2, alpha=4))
CALLS = ("open", "fsync", "replace", "mkdir", "unlink")


class Killed(BaseException):
    """Nobody catches it."""


@pytest.fixture
def job(untrained_base: Path, tmp_path: Path) -> FitJob:
    """Saves after steps 1, 2, 3; the third save takes the place of the first."""
    return fit_job(untrained_base, tmp_path, TRAIN, steps=4)


@pytest.fixture
def calm(job: FitJob) -> str:
    """Digest of the adapter of an unbroken fit."""
    out = job.out.with_name("calm")
    unbroken = replace(job, out=out, checkpoint_dir=out.with_name("calm-checkpoint"))
    return checkpoint_digest(fit_adapter(unbroken).adapter)


def kill_at(point: int, patched: pytest.MonkeyPatch) -> None:
    """From the ``point``-th disk call on, no call reaches the disk; half of a torn save does."""
    seen = count(1)

    def dying(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            number = next(seen)
            if number < point:
                return call(*args, **kwargs)
            if number == point and call is save_file:
                call(*args, **kwargs)
                os.truncate(args[1], args[1].stat().st_size // 2)
            raise Killed

        return wrapper

    save_file = checkpoints.save_file
    patched.setattr(checkpoints, "save_file", dying(save_file))
    for name in CALLS:
        patched.setattr(os, name, dying(getattr(os, name)))


def steps_on_disk(job: FitJob) -> list[int]:
    return sorted(int(path.name[:8]) for path in job.checkpoint_dir.glob("*.safetensors"))


def newest_step(job: FitJob) -> int:
    with Checkpoints(job.checkpoint_dir).newest() as saved:
        return saved.progress["step"] if saved else 0


def killed_after(job: FitJob, last: int) -> None:
    def die(step: int, metrics: dict[str, float], checkpoint: Path | None) -> None:
        if step == last:
            raise Killed

    with pytest.raises(Killed):
        fit_adapter(job, WorkerContext(report=die))


def test_a_fit_killed_at_any_disk_call_resumes_to_the_same_bytes(
    job: FitJob, calm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for point in count(1):
        here = job.out.with_name(f"point-{point}")
        one = replace(job, out=here / "fdp", checkpoint_dir=here / "checkpoint")
        saved = [0]
        note = WorkerContext(report=lambda step, _, folder, saved=saved: saved.append(step))
        with monkeypatch.context() as patched:
            kill_at(point, patched)
            try:
                fit_adapter(one, note)
            except Killed:
                pass
            else:
                break
        if not one.out.exists():
            assert len(list(one.checkpoint_dir.glob("*"))) <= 2
            assert newest_step(one) >= min(saved[-1], 3)
        assert checkpoint_digest(fit_adapter(one).adapter) == calm
    assert point > 25


def test_a_fit_keeps_two_checkpoints(job: FitJob) -> None:
    killed_after(job, 3)
    assert steps_on_disk(job) == [2, 3]
    assert len(list(job.checkpoint_dir.iterdir())) == 2


def test_a_damaged_newest_checkpoint_falls_back_to_the_older_one(job: FitJob, calm: str) -> None:
    killed_after(job, 3)
    older, newest = sorted(job.checkpoint_dir.iterdir())
    os.truncate(newest, newest.stat().st_size - 1)
    assert newest_step(job) == 2
    killed_after(job, 3)  # its save puts a sound file in the damaged one's place
    assert sorted(job.checkpoint_dir.iterdir()) == [older, newest]
    assert newest_step(job) == 3
    assert checkpoint_digest(fit_adapter(job).adapter) == calm


def test_a_fit_whose_checkpoints_are_all_damaged_starts_again(job: FitJob, calm: str) -> None:
    killed_after(job, 3)
    for path in job.checkpoint_dir.iterdir():
        path.write_bytes(b"")
    reported: list[int] = []
    note = WorkerContext(report=lambda step, *_: reported.append(step))
    assert checkpoint_digest(fit_adapter(job, note).adapter) == calm
    assert reported == [1, 2, 3, 4]
