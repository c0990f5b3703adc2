"""FSDP2: weights, gradients and optimizer state of one model split over its workers.

`fully_shard` replaces every parameter by a `DTensor` that holds this worker's rows of it; a layer's
weights are whole only while the layer runs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from dynamics.training.backend import PlainEngine


class FsdpEngine(PlainEngine):
    """Runs a module whose layers are sharded over ``mesh``; gradients are averaged over it.

    The optimizer's parameters and state, e.g. of a resumed fit, are sharded with it.
    """

    def __init__(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, mesh: DeviceMesh
    ) -> None:
        before = dict(module.named_parameters())
        for layer in module.modules():
            # The class of every transformers decoder layer.
            if isinstance(layer, GradientCheckpointingLayer):
                fully_shard(layer, mesh=mesh)
        fully_shard(module, mesh=mesh)
        super().__init__(module, optimizer)
        _follow(optimizer, before, dict(module.named_parameters()))

    @contextmanager
    def unsynced(self) -> Iterator[None]:
        """Keep gradients on this worker while it is open."""
        assert isinstance(self.module, FSDPModule)
        self.module.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self.module.set_requires_gradient_sync(True)


def _follow(
    optimizer: torch.optim.Optimizer, before: dict[str, nn.Parameter], after: dict[str, Any]
) -> None:
    """Replace an optimizer's whole parameters and their state by this worker's shards."""
    names = {id(parameter): name for name, parameter in before.items()}
    for group in optimizer.param_groups:
        group["params"] = [after[names[id(old)]] for old in group["params"]]
    for old in list(optimizer.state):
        shard = after[names[id(old)]]
        optimizer.state[shard] = {
            # State of the parameter's shape is sharded with it; the step count is not.
            key: distribute_tensor(value, shard.device_mesh, shard.placements)
            if isinstance(value, Tensor) and value.shape == shard.shape
            else value
            for key, value in optimizer.state.pop(old).items()
        }


def whole(tensor: Tensor) -> Tensor:
    """The full tensor of a sharded one (all workers must call this); any other one itself."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_state(network: nn.Module) -> dict[str, Tensor] | None:
    """Full weights of a sharded network, None when it is not sharded; all workers must call this.

    With an adapter these are the trained weights alone.
    """
    parameters = dict(network.named_parameters())
    if not any(isinstance(parameter, DTensor) for parameter in parameters.values()):
        return None
    adapter = hasattr(network, "peft_config")
    return {
        name: whole(tensor)
        for name, tensor in network.state_dict().items()
        if not adapter or (name in parameters and parameters[name].requires_grad)
    }
