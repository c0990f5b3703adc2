"""Schedule: whether a round's fits share the workers, or follow each other on all of them."""

from collections.abc import Mapping
from typing import Literal

from dynamics.core.config import TrainConfig
from dynamics.training.loss import Task

Schedule = Literal["together", "sequence"]


def schedule_of(train: TrainConfig, steps: Mapping[Task, int]) -> Schedule:
    """The schedule of fits with these steps on ``num_workers`` workers a fit.

    ``train.schedule: auto`` counts the rows that the busiest worker computes, since rows of both
    tasks cost about the same. On CPUs fits always run together: averaging gradients there costs
    more than an idle core. DeepSpeed takes all workers for one model.
    """
    if train.schedule != "auto":
        return train.schedule
    if train.strategy.startswith("deepspeed"):
        return "sequence"
    if not train.num_gpus_per_worker:
        return "together"

    def rows(task: Task, workers: int) -> int:
        return steps[task] * -(-train.of(task).batch_size // workers)

    together = max(rows(task, train.num_workers) for task in steps)
    in_sequence = sum(rows(task, train.num_workers * len(steps)) for task in steps)
    return "sequence" if in_sequence < together else "together"
