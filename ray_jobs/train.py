"""Ray Train: the two adapters of a round, side by side in the worker group of one `TorchTrainer`.

`fit_adapter` keeps its own checkpoints in the run folder and resumes from the newest sound one, so
it survives the loss of a worker (Ray Train restarts it), of the whole cluster and of the driver
(the next bootstrap does) in the same way. Ray Train brings up and restarts the worker group.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import ray
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.optim import Optimizer

from dynamics.core.config import TrainConfig
from dynamics.core.errors import UserError
from dynamics.core.places import Place, as_place
from dynamics.core.progress import Progress
from dynamics.storage.files import local_state
from dynamics.storage.run_folder import TrainingLog
from dynamics.training.backend import Engine, PlainEngine
from dynamics.training.batches import FitJob
from dynamics.training.checkpoints import FitResult, finished_fit
from dynamics.training.fit import WorkerContext, fit_adapter
from dynamics.training.loss import RowLoss, Task
from dynamics.training.sharding import FsdpEngine
from ray_jobs.sight import Sight

MAX_FAILURES = 2


class DdpEngine(PlainEngine):
    """Gradients averaged over a task's workers by `DistributedDataParallel` (gloo or nccl)."""

    def __init__(self, loss: RowLoss, optimizer: Optimizer, group: Any) -> None:
        options = {"process_group": group, "find_unused_parameters": loss.some_unused}
        prepared = ray.train.torch.prepare_model(loss, parallel_strategy_kwargs=options)
        super().__init__(prepared, optimizer)
        self._replica: Any = prepared

    def unsynced(self) -> AbstractContextManager[None]:
        """Keep gradients on this worker while the context is open."""
        held_back: AbstractContextManager[None] = self._replica.no_sync()
        return held_back


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

    @contextmanager
    def unsynced(self) -> Iterator[None]:
        """Let DeepSpeed only add up reduced gradients while the context is open."""
        self._engine.set_gradient_accumulation_boundary(is_boundary=False)
        try:
            yield
        finally:
            self._engine.set_gradient_accumulation_boundary(is_boundary=True)


# Clips like `PlainEngine`. A torch optimizer instead of DeepSpeed's own Adam saves building its
# C++ extension, which takes minutes.
_ZERO2: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": 1,  # only for its own counters: batches are made by fit
    "gradient_clipping": 1.0,
    "zero_optimization": {"stage": 2},
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
}


def fit_on_ray(
    jobs: Mapping[Task, FitJob],
    logs: Mapping[Task, TrainingLog],
    round_id: int,
    progress: Progress,
    sight: Sight,
) -> dict[Task, FitResult]:
    """Run the fits side by side, each worker once it has checked its sight; results by task.

    Raises:
        ray.train.TrainingFailedError: a worker failed more than `MAX_FAILURES` times.
    """
    fits = [_Fit(job=job, log=logs[task]) for task, job in jobs.items()]
    strategy = fits[0].job.train.strategy
    # DeepSpeed takes the whole process group for one model: a trainer each.
    groups = [[fit] for fit in fits] if strategy == "deepspeed_zero2" else [fits]
    # fit() blocks, so each has a thread; a process each would import torch twice more.
    threads = ThreadPoolExecutor(len(groups))
    try:
        pending = {threads.submit(_run_trainer, group, sight) for group in groups}
        total = sum(fit.job.steps for fit in fits)
        while pending:
            steps = sum(fit.log.last_step() for fit in fits)
            progress(min(steps, total), total, f"train IDM and FDP, round {round_id}")
            finished, pending = wait(pending, timeout=1.0, return_when=FIRST_EXCEPTION)
            for future in finished:
                future.result()  # a failed fit stops the round at once
        return {task: _fitted(job) for task, job in jobs.items()}
    finally:
        threads.shutdown(wait=False, cancel_futures=True)


def _fitted(job: FitJob) -> FitResult:
    result = finished_fit(job)
    if result is None:
        raise UserError(
            f"the workers finished, but {job.out} is not here; run_dir must lie on storage that "
            "all machines of the cluster share"
        )
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fit:
    """One task's fit and the log of its loss curve."""

    job: FitJob
    log: TrainingLog

    def to_json(self) -> dict[str, Any]:
        """The fit as plain values, which Ray's controller reads without importing torch."""
        job = {field.name: getattr(self.job, field.name) for field in fields(self.job)}
        job |= {name: str(value) for name, value in job.items() if isinstance(value, Place)}
        return {
            "job": job | {"train": self.job.train.model_dump(mode="json")},
            "log": str(self.log.path),
        }

    @classmethod
    def from_json(cls, payload: dict[str, Any]) -> "_Fit":
        """Inverse of `to_json`."""
        job = dict(payload["job"])
        for name in ("base", "transitions", "init_from", "out", "checkpoint_dir"):
            job[name] = None if job[name] is None else as_place(job[name])
        job["train"] = TrainConfig.model_validate(job["train"])
        return cls(job=FitJob(**job), log=TrainingLog(as_place(payload["log"])))


def _run_trainer(fits: Sequence[_Fit], sight: Sight) -> None:
    first = fits[0].job
    loop: Any = _train_loop
    trainer = TorchTrainer(
        loop,
        train_loop_config={"fits": [fit.to_json() for fit in fits], "sight": sight},
        torch_config=TorchConfig(backend="nccl" if first.train.num_gpus_per_worker else "gloo"),
        scaling_config=_scaling(first.train, num_fits=len(fits)),
        run_config=RunConfig(
            name="-".join(fit.job.task for fit in fits),
            storage_path=str(local_state(first.checkpoint_dir.parent / "ray")),
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
        ),
    )
    trainer.fit()


def _scaling(train: TrainConfig, num_fits: int) -> ScalingConfig:
    resources = {"CPU": 1.0}
    if train.num_gpus_per_worker:
        resources["GPU"] = train.num_gpus_per_worker
    return ScalingConfig(
        num_workers=train.num_workers * num_fits,
        use_gpu=bool(train.num_gpus_per_worker),
        resources_per_worker=resources,
    )


def _train_loop(config: dict[str, Any]) -> None:
    """Fit in a worker: the first ``num_workers`` ranks fit the first job, and so on."""
    config["sight"].check()
    fits = [_Fit.from_json(payload) for payload in config["fits"]]
    world_rank = ray.train.get_context().get_world_rank()
    size = fits[0].job.train.num_workers
    mine, rank = divmod(world_rank, size)
    job, log = fits[mine].job, fits[mine].log
    if job.train.strategy == "deepspeed_zero2":
        # Its optimizer state is split over the workers, which the fit's own checkpoints cannot
        # hold: a killed ZeRO fit starts again.
        job = replace(job, train=job.train.model_copy(update={"checkpoint_every": job.steps}))

    def report(step: int, metrics: dict[str, float], checkpoint: Place | None) -> None:
        if rank == 0:
            log.append(step, metrics)

    make_engine = _engine_maker(job.train, mine, num_fits=len(fits))
    fit_adapter(
        job, WorkerContext(rank=rank, world_size=size, make_engine=make_engine, report=report)
    )


def _engine_maker(
    train: TrainConfig, mine: int, num_fits: int
) -> Callable[[nn.Module, Optimizer], Engine]:
    """Engine that combines this worker's gradients with those of the task's other workers."""
    if train.strategy == "deepspeed_zero2":
        return DeepSpeedEngine
    if train.num_workers == 1:
        return PlainEngine
    # Every worker must take part in making every group, in the same order.
    size = train.num_workers
    groups = [
        torch.distributed.new_group(list(range(index * size, (index + 1) * size)))
        for index in range(num_fits)
    ]
    if train.strategy == "fsdp2":
        device = "cuda" if train.num_gpus_per_worker else "cpu"
        return partial(FsdpEngine, mesh=DeviceMesh.from_group(groups[mine], device))
    return partial(DdpEngine, group=groups[mine])
