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
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer

from dynamics.training.backend import PlainEngine
from dynamics.training.checkpoints import Part, Saved
from dynamics.training.trainable import trainable_parameters


class FsdpEngine(PlainEngine):
    """Runs a module whose layers are sharded over ``mesh``; gradients are averaged over it."""

    def __init__(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, mesh: DeviceMesh
    ) -> None:
        self._mesh = mesh
        before = dict(module.named_parameters())
        for layer in module.modules():
            # The class of every transformers decoder layer.
            if isinstance(layer, GradientCheckpointingLayer):
                fully_shard(layer, mesh=mesh)
        fully_shard(module, mesh=mesh)
        super().__init__(module, optimizer)
        after = dict(module.named_parameters())
        names = {id(parameter): name for name, parameter in before.items()}
        for group in optimizer.param_groups:
            group["params"] = [after[names[id(whole)]] for whole in group["params"]]

    @contextmanager
    def unsynced(self) -> Iterator[None]:
        """Keep gradients on this worker while it is open."""
        assert isinstance(self.module, FSDPModule)
        self.module.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self.module.set_requires_gradient_sync(True)

    def _part(self, tensor: Tensor) -> Part:
        if not isinstance(tensor, DTensor):
            return Part(tensor)
        return Part(tensor.to_local(), _rows(tensor)[0])

    def _read(self, saved: Saved, name: str, parameter: Any) -> Tensor:
        rows = saved.read(name, *_rows(parameter))
        if not rows.ndim:
            return rows
        return DTensor.from_local(
            rows.to(parameter.device),
            parameter.device_mesh,
            parameter.placements,
            shape=parameter.shape,
            stride=parameter.stride(),
        )

    def whole_weights(self, network: nn.Module) -> dict[str, Tensor] | None:
        """Full weights, gathered one after the other."""
        trained = trainable_parameters(network)
        weights: dict[str, Tensor] = {}
        for name, tensor in network.state_dict().items():
            if name in trained or not hasattr(network, "peft_config"):
                whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
                if self._mesh.get_local_rank() == 0:
                    weights[name] = whole.cpu()
        return weights


def _rows(shard: DTensor) -> tuple[int, int]:
    """The rows [start, stop) of the whole tensor that this worker has."""
    rows, mesh = shard.shape[0], shard.device_mesh
    size = -(-rows // mesh.size())
    start = min(size * mesh.get_local_rank(), rows)
    return start, min(start + size, rows)
