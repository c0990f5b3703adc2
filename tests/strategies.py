"""Every strategy, one after the other, in one group of two Ray Train workers."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dynamics.core.config import LoraConfig, TrainConfig
from dynamics.training.batches import FitJob
from dynamics.training.fit import WorkerContext, fit_adapter
from ray_jobs.engines import worker_context

STRATEGIES = ("ddp", "fsdp2", "deepspeed_zero2", "deepspeed_zero3")
KINDS = (("lora", "float32"), ("full", "float32"), ("lora", "bfloat16"))


class KilledError(Exception):
    """Ends a fit between two steps, on all workers."""


@dataclass(frozen=True)
class Case:
    """A strategy with a method and a precision; rows are uneven over two workers."""

    strategy: str
    method: str
    precision: str

    def job(self, one: FitJob, name: str) -> FitJob:
        """The fit of this name."""
        train = TrainConfig(
            **vars(self),
            batch_size=5,
            micro_batch_rows=2,
            checkpoint_every=2,
            warmup_steps=1,
            learning_rate=1e-3,
            lora=LoraConfig(r=4, alpha=8),
        )
        out = one.out.parent / "-".join([*vars(self).values(), name])
        return replace(
            one, train=train, out=out, checkpoint_dir=out.with_name(f"{out.name}-checkpoints")
        )


def run_cases(config: dict[str, Any]) -> None:
    """In a worker: fits of each case, unbroken or killed."""
    # DeepSpeed asks whether there is an autocast outside; on CPUs torch answers for CUDA.
    is_enabled = torch.is_autocast_enabled
    torch.is_autocast_enabled = lambda device="cpu": is_enabled(device)
    one: FitJob = config["job"]
    both = torch.distributed.group.WORLD
    assert both is not None
    for strategy in STRATEGIES:
        for method, precision in KINDS:
            case = Case(strategy, method, precision)
            context = worker_context(case.job(one, ""), both)
            if method == "lora":
                fit(case.job(one, "calm"), context)
            if precision == "float32":
                killed = case.job(one, "killed")
                fit(killed, context, until=2)
                keep_apart(killed, case.job(one, "elastic"), both.rank())
                fit(killed, context)
                elastic = case.job(one, "elastic")
                if both.rank() == 0:
                    fit(elastic, WorkerContext(), until=4)
                torch.distributed.barrier()
                fit(elastic, context)


def keep_apart(killed: FitJob, other: FitJob, rank: int) -> None:
    """Give another fit the checkpoints of a killed one."""
    if rank == 0:
        shutil.copytree(killed.checkpoint_dir, other.checkpoint_dir)
    torch.distributed.barrier()


def fit(job: FitJob, context: WorkerContext, until: int | None = None) -> None:
    """Fit to the end, or until a checkpoint, after which it is killed."""

    def report(step: int, metrics: dict[str, float], checkpoint: Path | None) -> None:
        if step == until:
            raise KilledError

    try:
        fit_adapter(job, replace(context, report=report))
    except KilledError:
        assert until is not None
    if context.world_size > 1:
        torch.distributed.barrier()  # what worker 0 writes last is there
