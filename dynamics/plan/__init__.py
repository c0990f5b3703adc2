"""Needs of a run before it starts: parameters, tokens, memory, hours, disk.

`make_plan` computes it from the configuration and the base's ``config.json``; no weight is read.
"""

from dataclasses import asdict, dataclass
from typing import Any, get_args

from dynamics.core.config import LoopConfig
from dynamics.plan.cost import (
    Hours,
    Machine,
    Memory,
    Strategy,
    TaskPlan,
    disk_bytes,
    hours,
    memory,
    task_plan,
)
from dynamics.plan.sizes import Sizes, base_sizes
from dynamics.training.loss import Task

__all__ = ["Machine", "Plan", "make_plan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Estimates of a run."""

    name: str
    sizes: Sizes
    tasks: dict[Task, TaskPlan]
    memory: dict[Task, dict[Strategy, Memory]]
    """Memory per GPU (or CPU worker), by task and strategy; the run's own is ``strategy``."""
    strategy: str
    num_workers: int
    """Workers of a task."""
    machine: Machine
    hours: Hours
    disk_bytes: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """A plain dict, sums included."""
        payload = asdict(self)
        for task, found in self.memory.items():
            for strategy, one in found.items():
                payload["memory"][task][strategy]["total"] = one.total
        payload["hours"]["total"] = self.hours.total
        payload["disk_bytes"]["total"] = sum(self.disk_bytes.values())
        return payload


def make_plan(cfg: LoopConfig, machine: Machine) -> Plan:
    """The plan of a run.

    Raises:
        UserError: the base is not on this machine, and its published sizes are not known either.
    """
    sizes = base_sizes(cfg)
    tasks: dict[Task, TaskPlan] = {task: task_plan(cfg, sizes, task) for task in get_args(Task)}
    return Plan(
        name=cfg.name,
        sizes=sizes,
        tasks=tasks,
        memory={
            task: {strategy: memory(cfg, sizes, plan, strategy) for strategy in get_args(Strategy)}
            for task, plan in tasks.items()
        },
        strategy=cfg.train.strategy,
        num_workers=cfg.train.num_workers,
        machine=machine,
        hours=hours(cfg, sizes, tasks, machine),
        disk_bytes=disk_bytes(cfg, sizes),
    )
