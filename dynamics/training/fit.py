"""Fit one adapter on a set of transitions: the same function alone, under DDP, on Ray.

Everything random is derived from (seed, step), so a run that resumes from a checkpoint takes the
same steps as one that never stopped.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from dynamics.core.config import TrainConfig
from dynamics.core.places import Place
from dynamics.core.seeds import derive_seed
from dynamics.models.tokens import IGNORE, Rows
from dynamics.training.backend import Engine, PlainEngine
from dynamics.training.batches import Batches, FitJob
from dynamics.training.checkpoints import (
    Checkpoints,
    FitResult,
    finished_fit,
    fit_result,
    load_weights,
    publish,
)
from dynamics.training.loss import RowLoss
from dynamics.training.meter import Meter
from dynamics.training.objectives import objective
from dynamics.training.trainable import stack_of, trainable_model, trainable_parameters
from dynamics.training.validation import Validation

REPORT_EVERY = 25


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerContext:
    """Place of this process among the workers of a fit."""

    rank: int = 0
    world_size: int = 1
    make_engine: Callable[[RowLoss, torch.optim.Optimizer], Engine] = PlainEngine
    report: Callable[[int, dict[str, float], Place | None], None] = field(
        default=lambda step, metrics, checkpoint: None
    )
    """Called every REPORT_EVERY steps, and with the folder at every checkpoint. Slow steps are also
    reported every 10 s, by each worker on its own clock: it must not wait for the others."""
    sums: Callable[[Sequence[float]], list[float]] = list
    """Sums of numbers over the workers; all of them call it."""
    is_leaving: Callable[[], bool] = bool
    """True once worker 0 hears that a worker's node goes away: a checkpoint is wanted now."""

    def of_first(self, value: int) -> int:
        """The value of worker 0; all workers call it."""
        return int(self.sums([value if self.rank == 0 else 0])[0])


def learning_rate(train: TrainConfig, step: int, steps: int) -> float:
    """Linear warm-up, then cosine to zero; ``step`` counts from 0."""
    warm = min(1.0, (step + 1) / (train.warmup_steps + 1))
    return train.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / steps))


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def _autocast(job: FitJob, device: torch.device) -> AbstractContextManager[None]:
    if job.train.precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def _lower_frozen(job: FitJob, network: nn.Module) -> None:
    """Store frozen weights in bfloat16 where it is the precision: half the memory of the base."""
    if job.train.precision == "bfloat16":
        for parameter in network.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(torch.bfloat16)


def fit_adapter(job: FitJob, context: WorkerContext | None = None) -> FitResult:
    """Train ``job.steps`` steps and write the adapter; returns at once when it is complete.

    All workers call this; rank 0 writes. Workers build the same batch and take every
    ``world_size``-th row, and the loss is divided by the whole batch's scored tokens, so the
    gradient does not depend on the number of workers, which may be another one after a resume.
    """
    context = context or WorkerContext()
    done = finished_fit(job)
    if context.of_first(done is not None):
        if done is None:
            raise RuntimeError(f"{job.out} is complete, but this worker does not see it")
        return done
    job = replace(job, train=job.train.of(job.task))
    model = trainable_model(job)
    network = model.network
    trainable = list(trainable_parameters(network).values())
    optimizer = torch.optim.AdamW(
        trainable,
        lr=job.train.learning_rate,
        weight_decay=job.train.weight_decay,
        fused=job.train.strategy == "ddp" and model.device.type == "cpu",
    )
    learns = objective(job.train.objective)
    checkpoints = Checkpoints(
        job.checkpoint_dir, context.rank, context.world_size, context.of_first
    )
    start, recent = 0, list[float]()
    with checkpoints.newest() as saved:
        if saved:
            start, recent = saved.progress["step"], saved.progress["recent"]
            load_weights(network, saved)
        loss = RowLoss(model, learns, stack_of(job, model))
        _lower_frozen(job, network)
        engine = context.make_engine(loss, optimizer)
        if saved:
            engine.resume(network, saved)
        batches = Batches(job, model, learns)
        validation = Validation(job, network, batches, saved)
    meter = Meter(model.device)
    for step in range(start, job.steps):
        _set_rate(optimizer, learning_rate(job.train, step, job.steps))
        torch.manual_seed(derive_seed(job.seed, "dropout", step, context.rank))
        own = _step(engine, job, batches, step, context, meter)
        total, leaving = context.sums([own, context.rank == 0 and context.is_leaving()])
        recent = [*recent[-(REPORT_EVERY - 1) :], total / context.world_size]
        finished = step + 1
        validation.look(finished, loss)
        due = finished % job.train.checkpoint_every == 0 or leaving
        if checkpoint := bool(due and finished < job.steps):
            progress = {"step": finished, "recent": recent, **validation.progress()}
            checkpoints.save(engine.parts(network) | validation.parts(), finished, progress)
        if checkpoint or finished % REPORT_EVERY == 0 or finished == job.steps or meter.is_due:
            metrics = {
                "loss": sum(recent) / len(recent),
                "steps": float(job.steps),
                "learning_rate": learning_rate(job.train, step, job.steps),
                **meter.figures(),
                **validation.figures(),
            }
            context.report(finished, metrics, job.checkpoint_dir if checkpoint else None)
        if validation.is_over(context.of_first):
            break
    job = validation.take_best(job)
    weights = engine.whole_weights(network)
    if context.rank == 0:
        publish(job, network, weights, sum(recent) / len(recent))
    return fit_result(job, {"loss": sum(recent) / len(recent), "steps": job.steps})


def _step(
    engine: Engine,
    job: FitJob,
    batches: Batches,
    step: int,
    context: WorkerContext,
    meter: Meter,
) -> float:
    """One optimizer step; returns a loss whose mean over the workers is that per scored token."""
    rows, weights_BT = batches.batch(step)
    meter.count(rows.ids)
    device = meter.device
    task = batches.task_of(step)
    total = int((rows.labels != IGNORE).sum())
    parts = list(_micro_batches(rows, weights_BT, context, job.train.micro_batch_rows))
    loss_per_token = 0.0
    for number, (part, weights_bT) in enumerate(parts, start=1):
        weights = None if weights_bT is None else weights_bT.to(device)
        with nullcontext() if number == len(parts) else engine.unsynced():
            # One autocast each: it keeps casts of weights, which FSDP2 gathers anew each time.
            with _autocast(job, device):
                loss = engine.module(part.ids.to(device), part.labels.to(device), weights, task)
            # Workers' gradients are averaged: world_size makes that the sum over the batch.
            loss = loss * (context.world_size / total)
            engine.backward(loss)
        loss_per_token += float(loss.detach())
    engine.step()
    return loss_per_token


def _micro_batches(
    rows: Rows, weights_BT: Tensor | None, context: WorkerContext, most: int | None
) -> Iterator[tuple[Rows, Tensor | None]]:
    """This worker's rows of a batch, at most ``most`` at a time; all workers get equally many.

    A worker that has fewer rows than others goes on with rows of which nothing is scored.
    """
    size = len(rows.ids)
    mine = torch.arange(context.rank, size, context.world_size)
    largest = -(-size // context.world_size)
    number = -(-largest // (most or largest))
    parts = [part for part in torch.split(mine, most or largest) if len(part)]
    for part in parts:
        weights = None if weights_BT is None else weights_BT[part]
        yield Rows(rows.ids[part], rows.labels[part]), weights
    for _ in range(number - len(parts)):
        weights = None if weights_BT is None else weights_BT[:1]
        yield Rows(rows.ids[:1], torch.full_like(rows.labels[:1], IGNORE)), weights
