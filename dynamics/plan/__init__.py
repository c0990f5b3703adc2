"""Needs of a run before it starts: parameters, tokens, memory, hours, disk, and what does not fit.

`make_plan` computes it from the configuration, the base's ``config.json`` and the machines of a
cluster; no weight is read.
"""

from dataclasses import asdict, dataclass
from typing import Any, get_args

from dynamics.core.config import LoopConfig
from dynamics.plan.checks import Check, checks
from dynamics.plan.cluster import Cluster
from dynamics.plan.disk import disk_bytes
from dynamics.plan.flops import TaskPlan, task_plan
from dynamics.plan.hours import (
    Speed,
    StageHours,
    hours,
    own_schedule,
    training_hours,
    workers_of,
)
from dynamics.plan.memory import Memory, Strategy, training_memory
from dynamics.plan.sizes import Sizes, base_sizes
from dynamics.training.loss import Task
from dynamics.training.schedule import Schedule

__all__ = ["Plan", "make_plan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Estimates of a run."""

    name: str
    sizes: Sizes
    cluster: Cluster
    speed: Speed
    tasks: dict[Task, TaskPlan]
    workers: int
    """Workers that share a fit's memory in `memory`: all that training has on the cluster."""
    memory: dict[Task, dict[Strategy, Memory]]
    """Memory per GPU (or CPU worker), by task and strategy; the run's own is ``strategy``."""
    strategy: str
    hours: dict[str, StageHours]
    training: dict[Schedule, float]
    """Wall hours of training by schedule; ``schedule`` is the run's own."""
    schedule: Schedule
    disk_bytes: dict[str, int]
    checks: list[Check]

    @property
    def lacking(self) -> list[Check]:
        """The checks that do not fit."""
        return [check for check in self.checks if not check.fits]

    @property
    def wall(self) -> float:
        """Wall hours of all stages, which the loop runs in sequence."""
        return sum(stage.wall for stage in self.hours.values())

    @property
    def gpu_hours(self) -> float:
        """GPU hours of all stages."""
        return sum(stage.gpu_hours for stage in self.hours.values())

    def to_json(self) -> dict[str, Any]:
        """A plain dict, sums included."""
        payload = asdict(self)
        for task, found in self.memory.items():
            for strategy, one in found.items():
                payload["memory"][task][strategy]["total"] = one.total
        for name, stage in self.hours.items():
            payload["hours"][name]["gpu_hours"] = stage.gpu_hours
        payload["disk_bytes"]["total"] = sum(self.disk_bytes.values())
        payload |= {"wall": self.wall, "gpu_hours": self.gpu_hours, "fits": not self.lacking}
        return payload


def make_plan(cfg: LoopConfig, cluster: Cluster, speed: Speed) -> Plan:
    """The plan of a run on the machines of a cluster, whose cards (or cores) are so fast.

    Raises:
        UserError: the base is not on this machine, and its published sizes are not known either.
    """
    sizes = base_sizes(cfg)
    workers = max(1, workers_of(cfg, "train", cluster)[0])
    tasks: dict[Task, TaskPlan] = {
        task: task_plan(cfg, sizes, task, workers) for task in get_args(Task)
    }
    return Plan(
        name=cfg.name,
        sizes=sizes,
        cluster=cluster,
        speed=speed,
        tasks=tasks,
        workers=workers,
        memory={
            task: {
                strategy: training_memory(cfg, sizes, plan, strategy, workers)
                for strategy in get_args(Strategy)
            }
            for task, plan in tasks.items()
        },
        strategy=cfg.train.strategy,
        hours=hours(cfg, sizes, tasks, cluster, speed),
        training=training_hours(cfg, tasks, cluster, speed),
        schedule=own_schedule(cfg, tasks, workers_of(cfg, "train", cluster)[0]),
        disk_bytes=disk_bytes(cfg, sizes),
        checks=checks(cfg, sizes, cluster),
    )
