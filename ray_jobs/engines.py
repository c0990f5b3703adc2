"""Engines of several workers: DDP, FSDP2, DeepSpeed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import ray.train.torch
import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.optim import Optimizer

from dynamics.core.config import TrainConfig
from dynamics.training.backend import Engine, PlainEngine
from dynamics.training.batches import FitJob
from dynamics.training.checkpoints import Part, Saved
from dynamics.training.fit import WorkerContext
from dynamics.training.loss import RowLoss
from dynamics.training.sharding import FsdpEngine
from dynamics.training.trainable import trainable_parameters


def worker_context(job: FitJob, group: ProcessGroup) -> WorkerContext:
    """Place of this worker among those of its process group, with the strategy's engine."""
    return WorkerContext(
        rank=group.rank(),
        world_size=group.size(),
        make_engine=_engine_maker(job.train, group, job.device),
        sums=partial(_sums, group, job.device) if group.size() > 1 else list,
    )


def _engine_maker(
    train: TrainConfig, group: ProcessGroup, device: str
) -> Callable[[RowLoss, Optimizer], Engine]:
    if train.strategy.startswith("deepspeed"):
        return partial(DeepSpeedEngine, train=train)
    if group.size() == 1:
        return PlainEngine
    if train.strategy == "fsdp2":
        return partial(FsdpEngine, mesh=DeviceMesh.from_group(group, device))
    return partial(DdpEngine, group=group)


def _sums(group: ProcessGroup, device: str, numbers: Sequence[float]) -> list[float]:
    sums = torch.tensor(numbers, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(sums, group=group)
    return [float(number) for number in sums]


class DdpEngine(PlainEngine):
    """Gradients averaged over a task's workers by `DistributedDataParallel` (gloo or nccl)."""

    def __init__(self, loss: RowLoss, optimizer: Optimizer, group: ProcessGroup) -> None:
        options = {"process_group": group, "find_unused_parameters": loss.some_unused}
        device = next(loss.parameters()).device  # not the GPU that Ray has given to this worker
        prepared = ray.train.torch.prepare_model(loss, device, parallel_strategy_kwargs=options)
        super().__init__(prepared, optimizer)
        self._replica: Any = prepared

    def unsynced(self) -> AbstractContextManager[None]:
        """Keep gradients on this worker while the context is open."""
        held_back: AbstractContextManager[None] = self._replica.no_sync()
        return held_back


class DeepSpeedEngine:
    """ZeRO: optimizer state and gradients, with stage 3 weights, too, are split over all workers.

    The split depends on the number of workers, so checkpoints hold whole tensors.
    """

    def __init__(self, loss: RowLoss, optimizer: Optimizer, train: TrainConfig) -> None:
        import deepspeed

        # Only CPU inference would use the C++ extension that a first start otherwise builds.
        deepspeed.ops.__compatible_ops__.pop("deepspeed_shm_comm", None)
        self._stage = 3 if train.strategy == "deepspeed_zero3" else 2
        if self._stage == 3:
            deepspeed.zero.register_external_parameter(loss, loss.head)
        self._engine, *_ = deepspeed.initialize(
            model=loss,
            optimizer=optimizer,
            config=_config(train, self._stage),
            dist_init_required=False,  # Ray Train has started the process group
        )
        self.module: nn.Module = self._engine
        self._first = torch.distributed.get_rank() == 0

    def backward(self, loss: Tensor) -> None:
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

    def parts(self, network: nn.Module) -> dict[str, Part]:
        """Everything on worker 0, gathered one parameter after the other."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        states = self._engine.optimizer.optimizer.state
        taken = next(iter(states.values()))["step"]
        found: dict[str, Part] = {}
        for name, parameter in trainable_parameters(network).items():
            prefix = f"optimizer/{name}/"
            whole = {f"parameter/{name}": safe_get_full_fp32_param(parameter)}
            for key in _MOMENTS:
                whole[prefix + key] = safe_get_full_optimizer_state(parameter, key)
            if self._first:
                found |= {name: Part(tensor.cpu()) for name, tensor in whole.items()}
                found[prefix + "step"] = Part(taken.clone())
        return found

    def resume(self, network: nn.Module, saved: Saved) -> None:
        """Set the state of the flat tensors in which DeepSpeed keeps this worker's share."""
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        zero, trained = self._engine.optimizer, trainable_parameters(network)
        taken = saved.read(f"optimizer/{next(iter(trained))}/step")
        shares = "fp32_partitioned_groups_flat" if self._stage == 3 else _SHARES_OF_STAGE_2
        for share in getattr(zero, shares):
            moments = {key: torch.zeros_like(share) for key in _MOMENTS}
            zero.optimizer.state[share] = {"step": taken.clone(), **moments}
        if self._stage == 2:
            zero._lazy_init_hp_params_optimizer_state()
        for name, parameter in trained.items():
            for key in _MOMENTS:
                value = saved.read(f"optimizer/{name}/{key}").to(parameter.device)
                if self._stage == 2:
                    safe_set_full_optimizer_state(parameter, value, key)
                else:
                    safe_set_local_optimizer_state(parameter, _share(value, parameter), key)

    def whole_weights(self, network: nn.Module) -> dict[str, Tensor] | None:
        """With stage 3 full weights, gathered one after the other."""
        if self._stage == 2:
            return None
        import deepspeed

        trained = trainable_parameters(network)
        weights: dict[str, Tensor] = {}
        for name, tensor in network.state_dict(keep_vars=True).items():
            if name in trained or not hasattr(network, "peft_config"):
                with deepspeed.zero.GatheredParameters([tensor]):
                    if self._first:
                        weights[name] = tensor.detach().clone().cpu()
        return weights


def _share(value: Tensor, parameter: Any) -> Tensor:
    """This worker's share of a parameter's flat values, which stage 3 pads to equal shares."""
    size, rank = parameter.ds_tensor.numel(), torch.distributed.get_rank()
    padding = size * torch.distributed.get_world_size() - value.numel()
    return nn.functional.pad(value.flatten(), (0, padding)).narrow(0, size * rank, size)


_MOMENTS = ("exp_avg", "exp_avg_sq")
_SHARES_OF_STAGE_2 = "single_partition_of_fp32_groups"


def _config(train: TrainConfig, stage: int) -> dict[str, Any]:
    """Settings that clip like `PlainEngine`.

    A torch optimizer instead of DeepSpeed's own Adam saves building its C++ extension, which takes
    minutes. DeepSpeed switches an autocast off that its own settings do not name; no module is
    lower_precision_safe, since gradients are then summed in bfloat16.
    """
    return {
        "train_micro_batch_size_per_gpu": 1,  # only for its own counters: batches are made by fit
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "torch_autocast": {
            "enabled": train.precision == "bfloat16",
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        },
    }
