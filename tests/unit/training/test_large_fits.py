"""What a large model needs of a fit: micro-batches, bfloat16, checkpointing, shards."""

import os
import socket
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from transformers.modeling_layers import GradientCheckpointingLayer

from dynamics.core.config import LoraConfig, TaskTraining, TrainConfig
from dynamics.core.config_file import validate
from dynamics.core.errors import UserError
from dynamics.training.backend import PlainEngine
from dynamics.training.batches import FitJob
from dynamics.training.fit import WorkerContext, fit_adapter
from dynamics.training.sharding import FsdpEngine
from dynamics.training.trainable import trainable_model
from tests.unit.training.test_fit import Recorder, fit_job

TRAIN = TrainConfig(batch_size=6, checkpoint_every=4, warmup_steps=2, lora=LoraConfig(r=4, alpha=8))


@pytest.fixture
def job(untrained_base: Path, tmp_path: Path) -> FitJob:
    return fit_job(untrained_base, tmp_path, TRAIN, steps=8)


def with_train(job: FitJob, name: str, **changes: Any) -> FitJob:
    return replace(
        job,
        train=TrainConfig.model_validate({**job.train.model_dump(), **changes}),
        out=job.out.with_name(name),
        checkpoint_dir=job.out.with_name(f"{name}-checkpoint"),
    )


class Counter(Recorder):
    """Also counts the passes through the model."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(module, optimizer)
        self.rows: list[int] = []
        module.register_forward_hook(lambda _, inputs, __: self.rows.append(len(inputs[0])))


def first_gradient(job: FitJob) -> tuple[list[Tensor], list[int]]:
    engines: list[Counter] = []

    def make(module: nn.Module, optimizer: torch.optim.Optimizer) -> Counter:
        engines.append(Counter(module, optimizer))
        return engines[0]

    fit_adapter(replace(job, steps=1), WorkerContext(make_engine=make))
    return engines[0].gradients, engines[0].rows


def assert_close(first: list[Tensor], second: list[Tensor], tolerance: float) -> None:
    for one, other in zip(first, second, strict=True):
        assert torch.allclose(one, other, atol=tolerance)


@pytest.mark.parametrize("task", ["fdp", "idm"])
def test_micro_batches_give_the_gradient_of_the_whole_batch(job: FitJob, task: Any) -> None:
    job = replace(job, task=task)
    weighted = {"recognition_weight": 1.0}
    whole, rows = first_gradient(with_train(job, "whole", **weighted))
    parts, rows_of_parts = first_gradient(with_train(job, "parts", micro_batch_rows=4, **weighted))
    assert rows == [6]
    assert rows_of_parts == [4, 2]
    assert any(bool(gradient.any()) for gradient in whole)
    assert_close(whole, parts, 1e-6)


def test_gradient_checkpointing_gives_the_same_gradient(job: FitJob) -> None:
    kept, _ = first_gradient(with_train(job, "kept"))
    recomputed = with_train(job, "again", gradient_checkpointing=True)
    again, _ = first_gradient(recomputed)
    assert_close(kept, again, 1e-6)
    layers = [
        layer
        for layer in trainable_model(recomputed).network.modules()
        if isinstance(layer, GradientCheckpointingLayer)
    ]
    assert layers
    assert all(layer.gradient_checkpointing for layer in layers)


@pytest.mark.parametrize("embeddings", [True, False])
def test_bfloat16_learns_what_float32_does_and_writes_float32(
    job: FitJob, embeddings: bool
) -> None:
    lora = {**TRAIN.lora.model_dump(), "train_embeddings": embeddings}
    losses = {
        precision: fit_adapter(
            with_train(replace(job, steps=25), precision, precision=precision, lora=lora)
        )
        for precision in ("float32", "bfloat16")
    }
    assert losses["bfloat16"].loss == pytest.approx(losses["float32"].loss, rel=0.01)
    assert losses["bfloat16"].loss != losses["float32"].loss
    weights = load_file(losses["bfloat16"].adapter / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_each_task_may_have_its_own_settings(job: FitJob) -> None:
    train = TrainConfig(
        batch_size=6, idm=TaskTraining(batch_size=4, learning_rate=1e-5, first_steps=3)
    )
    assert train.of("idm").batch_size == 4
    assert train.of("fdp") == TrainConfig(batch_size=6)
    _, rows = first_gradient(replace(job, task="idm", train=train, out=job.out.with_name("idm")))
    assert rows == [4]


def test_micro_batches_must_be_equally_many_on_all_workers() -> None:
    with pytest.raises(UserError, match="multiple of num_workers"):
        validate(
            {"train": {"batch_size": 6, "num_workers": 4, "micro_batch_rows": 1}}, where="here"
        )


class KilledError(Exception):
    pass


def sharded_fit(rank: int, world_size: int, port: int, job: FitJob, die_at: int | None) -> None:
    """One worker of an FSDP2 fit, in a process of its own."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world_size)

    def report(step: int, metrics: dict[str, float], checkpoint: Path | None) -> None:
        if step == die_at:
            raise KilledError

    mesh = init_device_mesh("cpu", (world_size,))
    context = WorkerContext(
        rank=rank,
        world_size=world_size,
        make_engine=partial(FsdpEngine, mesh=mesh),
        report=report,
    )
    try:
        fit_adapter(job, context)
        # What rank 0 writes last must be there before the group goes away.
        torch.distributed.barrier()
    except KilledError:
        assert die_at is not None
    finally:
        torch.distributed.destroy_process_group()


def run_sharded(job: FitJob, die_at: int | None = None) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(sharded_fit, args=(2, port, job, die_at), nprocs=2)


def difference(first: FitJob, second: FitJob, file: str) -> float:
    one, other = (load_file(job.out / file) for job in (first, second))
    assert set(one) == set(other)
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_two_sharded_workers_train_what_one_process_does(job: FitJob, method: str) -> None:
    changes = {"method": method, "learning_rate": 1e-3}
    alone = with_train(job, "alone", **changes)
    fit_adapter(alone, WorkerContext(make_engine=PlainEngine))
    sharded = with_train(job, "sharded", micro_batch_rows=2, num_workers=2, **changes)
    run_sharded(sharded)
    file = "adapter_model.safetensors" if method == "lora" else "model.safetensors"
    assert difference(alone, sharded, file) < 1e-4


@pytest.mark.slow
def test_a_killed_sharded_fit_resumes_to_the_adapter_of_an_unbroken_one(job: FitJob) -> None:
    changes = {"num_workers": 2, "precision": "bfloat16", "gradient_checkpointing": True}
    calm, killed = with_train(job, "calm", **changes), with_train(job, "killed", **changes)
    run_sharded(calm)
    run_sharded(killed, die_at=4)
    assert len(list(killed.checkpoint_dir.iterdir())) == 1
    run_sharded(killed)
    assert difference(calm, killed, "adapter_model.safetensors") == 0.0
