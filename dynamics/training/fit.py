"""Fit one adapter on a set of transitions: the same function alone, under DDP, on Ray.

Everything random is derived from (seed, step), so a run that resumes from a checkpoint takes the
same steps as one that never stopped.
"""

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from dynamics.config import LoraConfig, TrainConfig
from dynamics.models import load_model
from dynamics.models.adapters import adapter_digest
from dynamics.models.tokens import IGNORE, Rows
from dynamics.models.vlm import UnifiedVLM
from dynamics.records import TRANSITION_SCHEMA
from dynamics.seeds import derive_seed, numpy_rng
from dynamics.tables import codes_matrix, read_table
from dynamics.training.checkpoints import Checkpoints
from dynamics.training.engine import Engine, PlainEngine
from dynamics.training.loss import RowLoss, Task, recognition_weights
from dynamics.training.sharding import whole, whole_state

_IMAGE_TOKENIZER = re.compile(r"\bvqmodel\.")
LINEAR_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
REPORT_EVERY = 25

FitTask = Task | Literal["joint"]
"""What one fit learns. "joint": both tasks in one adapter, in turn, so that ``steps`` of it are
half a fit of each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FitJob:
    """What to fit, from what, into where."""

    task: FitTask
    family: str
    base: Path
    device: str
    transitions: Path
    """TRANSITION_SCHEMA: seed rows (origin "seed") and pseudo-labelled rows."""
    steps: int
    train: TrainConfig
    seed: int
    init_from: Path | None
    """What an earlier fit wrote, to start from; None = the base."""
    out: Path
    """Adapter folder, with ``train.method`` full a whole checkpoint; complete when it exists."""
    checkpoint_dir: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerContext:
    """Where this process stands among the workers of a fit."""

    rank: int = 0
    world_size: int = 1
    make_engine: Callable[[RowLoss, torch.optim.Optimizer], Engine] = PlainEngine
    report: Callable[[int, dict[str, float], Path | None], None] = field(
        default=lambda step, metrics, checkpoint: None
    )
    """Called every REPORT_EVERY steps, and with the folder at every checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FitResult:
    """A finished adapter."""

    adapter: Path
    digest: str
    steps: int
    loss: float
    """Mean over the last REPORT_EVERY steps, nats per scored token."""


class Batches:
    """Transitions in memory as codes and sentences; batch ``step`` is a pure function of seeds."""

    def __init__(self, job: FitJob, model: UnifiedVLM) -> None:
        table = read_table(job.transitions, TRANSITION_SCHEMA)
        self._job, self._tokens = job, model.tokens
        self._source = codes_matrix(table, "source_codes")
        self._target = codes_matrix(table, "target_codes")
        self._recognition = np.array(table.column("recognition").to_pylist(), dtype=np.float32)
        self._actions: list[str] = table.column("action").to_pylist()
        is_seed = np.array([origin == "seed" for origin in table.column("origin").to_pylist()])
        self._seed_rows, self._new_rows = np.flatnonzero(is_seed), np.flatnonzero(~is_seed)

    def rows_of(self, step: int) -> np.ndarray:
        """Indices of a step's batch: ``seed_fraction`` of it from the true seed."""
        rng = numpy_rng(self._job.seed, "batch", step)
        size = self._job.train.batch_size
        share = self._job.train.seed_fraction if len(self._new_rows) else 1.0
        from_seed = round(size * share) if len(self._seed_rows) else 0
        parts = [rng.choice(self._seed_rows, from_seed) if from_seed else self._seed_rows[:0]]
        if from_seed < size:
            parts.append(rng.choice(self._new_rows, size - from_seed))
        return np.concatenate(parts)

    def task_of(self, step: int) -> Task:
        """The task that a step trains."""
        if self._job.task == "joint":
            return "fdp" if step % 2 else "idm"
        return self._job.task

    def batch(self, step: int) -> tuple[Rows, Tensor | None]:
        """Token rows and, for the FDP with recognition weights, the weight of every scored code."""
        rows = self.rows_of(step)
        actions = [self._actions[row] for row in rows]
        if self.task_of(step) == "idm":
            return self._tokens.idm_rows(self._source[rows], self._target[rows], actions), None
        share = self._job.train.recognition_weight
        weights = (
            recognition_weights(torch.from_numpy(self._recognition[rows]), share) if share else None
        )
        return self._tokens.fdp_rows(self._source[rows], actions, self._target[rows]), weights


def learning_rate(train: TrainConfig, step: int, steps: int) -> float:
    """Linear warm-up, then cosine to zero; ``step`` counts from 0."""
    warm = min(1.0, (step + 1) / (train.warmup_steps + 1))
    return train.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / steps))


def trainable_model(job: FitJob) -> UnifiedVLM:
    """The base with what the job trains switched on.

    That is a LoRA adapter, fresh or from an earlier fit, or every weight of the language model.
    """
    if job.train.method == "full":
        model = load_model(job.family, job.init_from or job.base, job.device)
        train_all(model.network)
    else:
        model = load_model(job.family, job.base, job.device)
        _attach_adapter(model, job)
    model.network.train()
    if job.train.gradient_checkpointing:
        model.network.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def train_all(network: nn.Module) -> None:
    """Switch every weight on but those of the image tokenizer."""
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not _IMAGE_TOKENIZER.search(name))


def _autocast(job: FitJob, device: torch.device) -> AbstractContextManager[None]:
    if job.train.precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def _lower_frozen(job: FitJob, network: nn.Module) -> None:
    """With bfloat16, keep what is not trained in it: half the memory of the base."""
    if job.train.precision == "bfloat16":
        for parameter in network.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(torch.bfloat16)


def adapter_config(
    lora: LoraConfig, vocabulary_layers: Sequence[str] = UnifiedVLM.vocabulary_layers
) -> PeftLoraConfig:
    """A fresh adapter: on every linear layer of the decoder, embeddings and heads where asked."""
    return PeftLoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=LINEAR_LAYERS,
        modules_to_save=list(vocabulary_layers) if lora.train_embeddings else None,
    )


def _attach_adapter(model: UnifiedVLM, job: FitJob) -> None:
    torch.manual_seed(derive_seed(job.seed, "init"))
    if job.init_from is not None:
        network = PeftModel.from_pretrained(model.network, str(job.init_from), is_trainable=True)
    else:
        config = adapter_config(job.train.lora, model.vocabulary_layers)
        network = get_peft_model(model.network, config)
    # A name, not a path: an adapter's files must not depend on where the run lies.
    network.peft_config["default"].base_model_name_or_path = job.base.name
    model.network = network


def fit_adapter(job: FitJob, context: WorkerContext | None = None) -> FitResult:
    """Train ``job.steps`` steps and write the adapter; returns at once when it is complete.

    All workers call this; rank 0 writes. Workers build the same batch and take every
    ``world_size``-th row, and the loss is divided by the whole batch's scored tokens, so the
    gradient does not depend on the number of workers.
    """
    context = context or WorkerContext()
    if done := finished_fit(job):
        return done
    job = replace(job, train=job.train.of(job.task))
    model = trainable_model(job)
    network = model.network
    trainable = list(_trainable(network).values())
    optimizer = torch.optim.AdamW(
        trainable, lr=job.train.learning_rate, weight_decay=job.train.weight_decay
    )
    checkpoints = Checkpoints(job.checkpoint_dir)
    start, recent = _resume(checkpoints, network, optimizer)
    loss = RowLoss(model)
    _lower_frozen(job, network)
    engine = context.make_engine(loss, optimizer)
    batches = Batches(job, model)
    for step in range(start, job.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(job.train, step, job.steps)
        torch.manual_seed(derive_seed(job.seed, "dropout", step, context.rank))
        with _autocast(job, model.device):
            taken = _step(engine, job, batches, step, context, model.device)
        recent = [*recent[-(REPORT_EVERY - 1) :], taken]
        finished = step + 1
        checkpoint = finished % job.train.checkpoint_every == 0 and finished < job.steps
        if checkpoint:
            tensors = _state_tensors(network, optimizer)
            if context.rank == 0:
                checkpoints.save(tensors, finished, {"step": finished, "recent": recent})
        if checkpoint or finished % REPORT_EVERY == 0 or finished == job.steps:
            metrics = {"loss": sum(recent) / len(recent), "steps": float(job.steps)}
            context.report(finished, metrics, job.checkpoint_dir if checkpoint else None)
    weights = whole_state(network)
    if context.rank == 0:
        _publish(job, network, weights, sum(recent) / len(recent))
    return _result(job, {"loss": sum(recent) / len(recent), "steps": job.steps})


def finished_fit(job: FitJob) -> FitResult | None:
    """What a complete fit wrote, None while there is none."""
    done = job.out / "fit.json"
    return _result(job, json.loads(done.read_text())) if done.is_file() else None


def _step(
    engine: Engine,
    job: FitJob,
    batches: Batches,
    step: int,
    context: WorkerContext,
    device: torch.device,
) -> float:
    """One optimizer step; returns the loss per scored token of this worker's rows."""
    rows, weights_BL = batches.batch(step)
    task = batches.task_of(step)
    total = int((rows.labels != IGNORE).sum())
    parts = list(_micro_batches(rows, weights_BL, context, job.train.micro_batch_rows))
    taken = 0.0
    for number, (part, weights_bL) in enumerate(parts, start=1):
        weights = None if weights_bL is None else weights_bL.flatten().to(device)
        with nullcontext() if number == len(parts) else engine.unsynced():
            loss = engine.module(part.ids.to(device), part.labels.to(device), weights, task)
            # The workers' gradients are averaged: times world_size makes that the sum over the
            # whole batch.
            loss = loss * (context.world_size / total)
            engine.backward(loss)
        taken += float(loss.detach())
    engine.step()
    return taken


def _micro_batches(
    rows: Rows, weights_BL: Tensor | None, context: WorkerContext, most: int | None
) -> Iterator[tuple[Rows, Tensor | None]]:
    """This worker's rows of a batch, at most ``most`` at a time."""
    mine = torch.arange(context.rank, len(rows.ids), context.world_size)
    for part in torch.split(mine, most or len(mine)):
        weights = None if weights_BL is None else weights_BL[part]
        yield Rows(rows.ids[part], rows.labels[part]), weights


def _trainable(network: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in network.named_parameters() if p.requires_grad}


def _state_tensors(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What a resumed fit needs, by name; all workers call this, since shards are gathered."""
    tensors: dict[str, Tensor] = {}
    for index, (name, parameter) in enumerate(_trainable(network).items()):
        tensors[f"parameter/{name}"] = whole(parameter.detach()).contiguous()
        for key, value in optimizer.state_dict()["state"].get(index, {}).items():
            tensors[f"optimizer/{name}/{key}"] = whole(torch.as_tensor(value)).contiguous()
    return tensors


def _resume(
    checkpoints: Checkpoints, network: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, list[float]]:
    """Load the newest sound checkpoint, if any: (steps done, recent losses)."""
    if (found := checkpoints.load()) is None:
        return 0, []
    tensors, progress = found
    moments: dict[int, dict[str, Tensor]] = {}
    with torch.no_grad():
        for index, (name, parameter) in enumerate(_trainable(network).items()):
            parameter.copy_(tensors[f"parameter/{name}"])
            prefix = f"optimizer/{name}/"
            moments[index] = {
                k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)
            }
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return int(progress["step"]), [float(loss) for loss in progress["recent"]]


def _publish(job: FitJob, network: Any, weights: dict[str, Tensor] | None, loss: float) -> None:
    """Write the adapter folder in one rename, ``fit.json`` inside it.

    ``weights`` replaces the network's own where those are sharded.
    """
    fresh = job.out.with_name(job.out.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    if job.train.method == "full":
        # A checkpoint of its own, with the base's tokenizers and prompts: it loads without it.
        shutil.copytree(job.base, fresh, ignore=shutil.ignore_patterns("model*", "*.npy"))
        network.save_pretrained(str(fresh), state_dict=weights)
    else:
        network.save_pretrained(str(fresh), save_embedding_layers=False, state_dict=weights)
        (fresh / "README.md").unlink(missing_ok=True)
        _sort_config(fresh / "adapter_config.json")
    (fresh / "fit.json").write_text(
        json.dumps({"loss": loss, "steps": job.steps, "task": job.task}) + "\n"
    )
    shutil.rmtree(job.out, ignore_errors=True)
    fresh.rename(job.out)
    shutil.rmtree(job.checkpoint_dir, ignore_errors=True)


def _sort_config(path: Path) -> None:
    """Equal adapters must have equal files: peft writes its sets in an order that varies."""
    config = json.loads(path.read_text())
    config["target_modules"] = sorted(config["target_modules"])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _result(job: FitJob, record: dict[str, Any]) -> FitResult:
    digest = adapter_digest(job.base, job.out) if job.out.is_dir() else ""
    return FitResult(
        adapter=job.out, digest=digest, steps=int(record["steps"]), loss=float(record["loss"])
    )
