"""The fits of a round: one job per task."""

from typing import get_args

from dynamics.core.config import LoopConfig
from dynamics.core.records import DatasetRef, ModelRef
from dynamics.core.seeds import derive_seed
from dynamics.storage.run_folder import RunFolder
from dynamics.training.batches import FitJob
from dynamics.training.loss import Task


def fit_jobs(
    cfg: LoopConfig,
    folder: RunFolder,
    training_set: DatasetRef,
    previous: ModelRef | None,
    round_id: int,
) -> dict[Task, FitJob]:
    """Jobs of the round's IDM and FDP; with ``train.init: previous`` from ``previous``."""
    train = cfg.train
    start = previous if train.init == "previous" else None
    steps = {
        task: train.of(task).round_steps if round_id else train.of(task).first_steps
        for task in get_args(Task)
    }
    return {
        task: FitJob(
            task=task,
            family=cfg.model.family,
            base=cfg.base_path(),
            device=cfg.model.device,
            transitions=training_set.path,
            steps=steps[task],
            train=train,
            seed=derive_seed(cfg.seed, round_id, task),
            init_from=getattr(start, task) if start else None,
            out=folder.adapter(round_id, task),
            checkpoint_dir=folder.checkpoints(round_id) / task,
        )
        for task in get_args(Task)
    }
