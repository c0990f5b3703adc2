"""Ray Train: the two adapters of a round, trained by the worker group of one `TorchTrainer`.

The group has as many workers as find room, between `train.min_workers` and `train.num_workers` an
adapter, and is started again with another number as nodes come and go. `fit_adapter` keeps its own
checkpoints in the run folder and resumes from the newest sound one on any number of workers, so it
survives the loss of a worker or a node (Ray Train restarts the group), of the whole cluster and of
the driver (the next bootstrap does) in the same way.
"""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from threading import Thread
from typing import Any

import ray
import torch
from ray.train import FailureConfig, RunConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.execution.context import get_train_context
from ray.train.v2.api.config import ScalingConfig
from ray.train.v2.api.exceptions import TrainingFailedError
from torch.distributed import ProcessGroup

from dynamics.core.config import TrainConfig
from dynamics.core.errors import UserError
from dynamics.core.places import Place, as_place, matching
from dynamics.core.progress import Detail, Progress
from dynamics.storage.files import local_state, write_bytes
from dynamics.storage.run_folder import TrainingLog
from dynamics.training.batches import FitJob
from dynamics.training.checkpoints import FitResult, finished_fit
from dynamics.training.fit import fit_adapter
from dynamics.training.loss import Task
from dynamics.training.schedule import schedule_of
from ray_jobs import runtime
from ray_jobs.demand import PATIENCE_S, missing, release, short
from ray_jobs.engines import worker_context
from ray_jobs.sight import Sight

RESIZE_AFTER_S = 60.0
"""Time between looks whether there is room for more workers."""
_MAX_WORDS = 300
"""Most characters of a worker's own words in a line."""


def fit_on_ray(
    jobs: Mapping[Task, FitJob],
    logs: Mapping[Task, TrainingLog],
    round_id: int,
    progress: Progress,
    sight: Sight,
) -> dict[Task, FitResult]:
    """Run the fits, each worker once it has checked its sight; results by task.

    Raises:
        UserError: workers failed more than `train.max_failures` times in a row, or the cluster has
            no room for `train.min_workers`, and nothing will change that.
    """
    fits = [_Fit(job=job, log=logs[task]) for task, job in jobs.items()]
    train = fits[0].job.train
    schedule = schedule_of(train, {task: job.steps for task, job in jobs.items()})
    done: Future[None] = Future()
    # fit() blocks. A daemon, since a driver that gives up must not wait for it.
    Thread(target=_settle, args=(done, fits, sight, schedule == "together"), daemon=True).start()
    total = sum(fit.job.steps for fit in fits)
    room_seen = time.monotonic()
    while True:
        ended = done.done()  # asked before the logs are read: the last look finds all steps
        last = {fit.job.task: lines[-1] for fit in fits if (lines := fit.log.lines())}
        steps = sum(int(line["step"]) for line in last.values())
        need, fewest = _resources(train), _fewest(train, len(fits))
        what = f"train IDM and FDP, round {round_id}"
        losses: dict[str, float] = {task: line["loss"] for task, line in last.items()}
        detail = Detail(note=short(need, fewest) or "", losses=losses)
        progress(min(steps, total), total, what, detail)
        if ended:
            break
        if (lack := missing(need, fewest)) is None:
            room_seen = time.monotonic()
        elif time.monotonic() - room_seen > PATIENCE_S:
            raise UserError(
                f"training {lack}; add nodes, or lower train.min_workers or "
                "train.num_gpus_per_worker"
            )
        _wait(done)
    done.result()
    return {task: _fitted(job) for task, job in jobs.items()}


def _settle(done: "Future[None]", fits: Sequence["_Fit"], sight: Sight, together: bool) -> None:
    try:
        _run_trainers(fits, sight, together)
        done.set_result(None)
    except BaseException as error:
        done.set_exception(error)


def _wait(done: "Future[None]") -> None:
    with suppress(TimeoutError):
        done.exception(timeout=1.0)


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

    def kept(self) -> set[str]:
        """What a restart need not do again."""
        kept = {path.name for path in matching(self.job.checkpoint_dir, "*")}
        return kept | {"all"} if finished_fit(self.job) else kept


def _run_trainers(fits: Sequence[_Fit], sight: Sight, together: bool) -> None:
    """Run a trainer, and another one as long as the last one got further before it failed."""
    first = fits[0].job
    loop: Any = _train_loop
    while True:
        before = [fit.kept() for fit in fits]
        trainer = TorchTrainer(
            loop,
            train_loop_config={
                "fits": [fit.to_json() for fit in fits],
                "sight": sight,
                "together": together,
            },
            torch_config=TorchConfig(backend="gloo" if first.device == "cpu" else "nccl"),
            scaling_config=_scaling(first.train, num_fits=len(fits)),
            run_config=RunConfig(
                name="-".join(fit.job.task for fit in fits),
                storage_path=str(local_state(first.checkpoint_dir.parent / "ray")),
                failure_config=FailureConfig(max_failures=first.train.max_failures),
            ),
        )
        try:
            trainer.fit()
        except TrainingFailedError as error:
            release()
            if [fit.kept() for fit in fits] == before:
                if runtime.user_error(error):
                    raise
                raise _given_up(error, fits[0]) from error
        else:
            return


def _given_up(error: TrainingFailedError, fit: _Fit) -> UserError:
    """The line for a user, with a worker's own words; all that workers said goes to a file."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    first = next(iter(failures.values()))
    words = str(first).strip().rpartition("\n")[2].strip()[:_MAX_WORDS]
    path = fit.log.path.parent / "failure.txt"
    write_bytes(path, f"{error}\n".encode())
    return UserError(
        f"training gave up ({type(first).__name__}: {words}; train.max_failures="
        f"{fit.job.train.max_failures}); {path} says more; mend that, and the same command goes on "
        "from the newest checkpoint"
    )


def _resources(train: TrainConfig) -> dict[str, float]:
    gpus = train.num_gpus_per_worker
    return {"CPU": 1.0, "GPU": gpus} if gpus else {"CPU": 1.0}


def _fewest(train: TrainConfig, num_fits: int) -> int:
    return min(train.min_workers, train.num_workers * num_fits)


def _scaling(train: TrainConfig, num_fits: int) -> ScalingConfig:
    return ScalingConfig(
        num_workers=(_fewest(train, num_fits), train.num_workers * num_fits),
        use_gpu=bool(train.num_gpus_per_worker),
        resources_per_worker=_resources(train),
        elastic_resize_monitor_interval_s=RESIZE_AFTER_S,
    )


def _train_loop(config: dict[str, Any]) -> None:
    """Fit in a worker: together, the first ranks fit the first job, the next ranks the next.

    Where there are fewer workers than jobs, all of them do one job after the other.
    """
    config["sight"].check()
    fits = [_Fit.from_json(payload) for payload in config["fits"]]
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    everyone, leaving = torch.distributed.group.WORLD, _Leaving()
    assert everyone is not None  # Ray Train has started it
    if not config["together"] or world_size < len(fits):
        for fit in fits:
            _fit(fit, everyone, leaving)
        return
    bounds = [round(world_size * number / len(fits)) for number in range(len(fits) + 1)]
    # Every worker must take part in making every group, in the same order.
    groups = [torch.distributed.new_group(list(range(*bound))) for bound in pairwise(bounds)]
    for fit, group, bound in zip(fits, groups, pairwise(bounds), strict=True):
        if rank in range(*bound):
            _fit(fit, group, leaving)


def _fit(fit: _Fit, group: ProcessGroup, leaving: "_Leaving") -> None:
    def report(step: int, metrics: dict[str, float], checkpoint: Place | None) -> None:
        if group.rank() == 0:
            fit.log.append(step, metrics)

    context = worker_context(fit.job, group)
    fit_adapter(fit.job, replace(context, report=report, is_leaving=leaving))


class _Leaving:
    """True once for each notice that a node of the group will be taken away.

    Ray's `get_preemption_info` waits for all workers of the group at every call, but workers of two
    fits side by side do not take equally many steps: so this looks only at what its own has heard.
    """

    def __init__(self) -> None:
        self._known: Any = None

    def __call__(self) -> bool:
        """Look once more."""
        before, self._known = self._known, get_train_context().preemption_context.preemption_info
        return bool(self._known != before)
