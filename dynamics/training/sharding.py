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
        """While it is open gradients stay on this worker."""
        assert isinstance(self.module, FSDPModule)
        self.module.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self.module.set_requires_gradient_sync(True)


def _follow(
    optimizer: torch.optim.Optimizer, before: dict[str, nn.Parameter], after: dict[str, Any]
) -> None:
    """Make an optimizer of whole parameters one of their shards."""
    names = {id(parameter): name for name, parameter in before.items()}
    for group in optimizer.param_groups:
        group["params"] = [after[names[id(old)]] for old in group["params"]]
    for old in list(optimizer.state):
        shard = after[names[id(old)]]
        optimizer.state[shard] = {
            # What has the parameter's shape belongs to its elements; the step count does not.
            key: distribute_tensor(value, shard.device_mesh, shard.placements)
            if isinstance(value, Tensor) and value.shape == shard.shape
            else value
            for key, value in optimizer.state.pop(old).items()
        }


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor put together, which all its workers must ask for; any other one itself."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_state(network: nn.Module) -> dict[str, Tensor] | None:
    """What a sharded network has learnt, put together; None when it is not sharded.

    All workers must call this. Of a network with an adapter only the trained weights, of a fully
    trained one all.
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
