"""What a large model needs of a fit: micro-batches, bfloat16, checkpointing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from dynamics.core.config import LoraConfig, TaskTraining, TrainConfig
from dynamics.training.batches import FitJob
from dynamics.training.fit import WorkerContext, fit_adapter
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
