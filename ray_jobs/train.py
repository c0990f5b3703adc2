"""Ray Train: the two adapters of a round, each a `TorchTrainer`, side by side.

`fit_adapter` keeps its own checkpoints in the run folder and resumes from the newest one, so that
it survives the loss of a worker (Ray Train restarts it), of the whole cluster and of the driver
(the next bootstrap does) in the same way. Ray Train brings up and restarts the worker group.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from torch import nn
from torch.optim import Optimizer

from dynamics.config import TrainConfig
from dynamics.prepare import Progress
from dynamics.run_folder import TrainingLog
from dynamics.training.fit import (
    Engine,
    FitJob,
    FitResult,
    PlainEngine,
    WorkerContext,
    fit_adapter,
)
from dynamics.training.loss import Task

MakeEngine = Callable[[nn.Module, Optimizer], Engine]

MAX_FAILURES = 2


class DdpEngine(PlainEngine):
    """Gradients averaged over the workers by `DistributedDataParallel` (gloo or nccl)."""

    def __init__(self, module: nn.Module, optimizer: Optimizer) -> None:
        super().__init__(ray.train.torch.prepare_model(module), optimizer)


class DeepSpeedEngine:
    """ZeRO stage 2: optimizer state and gradients are split over the workers."""

    def __init__(self, module: nn.Module, optimizer: Optimizer) -> None:
        import deepspeed

        self._engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            config=_ZERO2,
            dist_init_required=False,  # Ray Train has started the process group
        )
        self.module: nn.Module = self._engine

    def backward(self, loss: torch.Tensor) -> None:
        """Gradients of this worker, reduced in buckets."""
        self._engine.backward(loss)

    def step(self) -> None:
        """Clip, update, clear."""
        self._engine.step()


# Clips like `PlainEngine`. A torch optimizer instead of DeepSpeed's own Adam saves building its
# C++ extension, which takes minutes.
_ZERO2: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": 1,  # only for its own counters: batches are made by fit
    "gradient_clipping": 1.0,
    "zero_optimization": {"stage": 2},
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
}

ENGINES: dict[str, MakeEngine] = {"ddp": DdpEngine, "deepspeed_zero2": DeepSpeedEngine}


def fit_on_ray(
    jobs: Mapping[Task, FitJob], logs: Mapping[Task, TrainingLog], round_id: int, progress: Progress
) -> dict[Task, FitResult]:
    """Run the fits side by side; returns their results by task.

    Raises:
        ray.train.TrainingFailedError: a worker failed more than `MAX_FAILURES` times.
    """
    # fit() blocks until its workers are done: a thread each, in this process, since a process of
    # their own would import torch twice more.
    threads = ThreadPoolExecutor(len(jobs))
    try:
        running = {task: threads.submit(_fit, job, logs[task]) for task, job in jobs.items()}
        total = sum(job.steps for job in jobs.values())
        pending: set[Future[FitResult]] = set(running.values())
        while pending:
            steps = sum(log.last_step() for log in logs.values())
            progress(min(steps, total), total, f"train IDM and FDP, round {round_id}")
            finished, pending = wait(pending, timeout=1.0, return_when=FIRST_EXCEPTION)
            for future in finished:
                future.result()  # a failed fit stops the round at once
        return {task: future.result() for task, future in running.items()}
    finally:
        threads.shutdown(wait=False, cancel_futures=True)


def _fit(job: FitJob, log: TrainingLog) -> FitResult:
    if job.train.strategy == "deepspeed_zero2":
        # Its optimizer state is split over the workers, which the fit's own checkpoints cannot
        # hold: a killed ZeRO fit starts again.
        job = replace(job, train=job.train.model_copy(update={"checkpoint_every": job.steps}))
    loop: Any = _train_loop  # what it returns is allowed, but not in Ray's annotations
    trainer = TorchTrainer(
        loop,
        train_loop_config={"job": job, "log": log},
        torch_config=TorchConfig(backend="nccl" if job.train.num_gpus_per_worker else "gloo"),
        scaling_config=_scaling(job.train),
        run_config=RunConfig(
            name=job.task,
            storage_path=str(job.checkpoint_dir.parent / "ray"),
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
        ),
    )
    result: Any = trainer.fit()
    fitted: FitResult = result.return_value
    return fitted


def _scaling(train: TrainConfig) -> ScalingConfig:
    resources = {"CPU": 1.0}
    if train.num_gpus_per_worker:
        resources["GPU"] = train.num_gpus_per_worker
    return ScalingConfig(
        num_workers=train.num_workers,
        use_gpu=bool(train.num_gpus_per_worker),
        resources_per_worker=resources,
    )


def _train_loop(config: dict[str, Any]) -> FitResult:
    """Runs in every worker of the group; rank 0 writes."""
    job: FitJob = config["job"]
    log: TrainingLog = config["log"]
    context = ray.train.get_context()
    rank = context.get_world_rank()

    def report(step: int, metrics: dict[str, float], checkpoint: Path | None) -> None:
        if rank == 0:
            log.append(step, metrics)

    return fit_adapter(
        job,
        WorkerContext(
            rank=rank,
            world_size=context.get_world_size(),
            make_engine=ENGINES[job.train.strategy],
            report=report,
        ),
    )
