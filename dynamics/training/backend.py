"""Engines: backward and optimizer steps of a fit."""

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn

from dynamics.training.checkpoints import Part, Saved
from dynamics.training.trainable import trainable_parameters


class Engine(Protocol):
    """Runs backward and optimizer steps; strategies (DDP, DeepSpeed) bring their own.

    All workers call each method.
    """

    module: nn.Module
    """The module that computes the loss."""

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients."""

    def step(self) -> None:
        """Clip, update, clear."""

    def unsynced(self) -> AbstractContextManager[None]:
        """Keep gradients on this worker while it is open: for all micro-batches but the last."""

    def parts(self, network: nn.Module) -> dict[str, Part]:
        """What this worker holds of the trained weights and of the optimizer's state, by name."""

    def resume(self, network: nn.Module, saved: Saved) -> None:
        """Set the optimizer's state."""

    def whole_weights(self, network: nn.Module) -> dict[str, Tensor] | None:
        """Full weights where they are split, on worker 0; None where the network's own are whole.

        With an adapter these are the trained weights alone.
        """


class PlainEngine:
    """One process, or DDP when the module is wrapped."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.module = module
        self._optimizer = optimizer

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients."""
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self) -> None:
        """Clip to norm 1, update, clear."""
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def unsynced(self) -> AbstractContextManager[None]:
        """Do nothing: there is no other worker."""
        return nullcontext()

    def parts(self, network: nn.Module) -> dict[str, Part]:
        """Everything."""
        found: dict[str, Part] = {}
        for name, parameter in trainable_parameters(network).items():
            found[f"parameter/{name}"] = self._part(parameter.detach())
            for key, value in self._optimizer.state.get(parameter, {}).items():
                found[f"optimizer/{name}/{key}"] = self._part(torch.as_tensor(value))
        return found

    def _part(self, tensor: Tensor) -> Part:
        return Part(tensor)

    def resume(self, network: nn.Module, saved: Saved) -> None:
        """Set the optimizer's state."""
        for name, parameter in trainable_parameters(network).items():
            prefix = f"optimizer/{name}/"
            self._optimizer.state[parameter] = {
                key: self._read(saved, prefix + key, parameter) for key in saved.below(prefix)
            }

    def _read(self, saved: Saved, name: str, parameter: nn.Parameter) -> Tensor:
        """State of the parameter's shape, or a number, which torch's optimizers keep on the CPU."""
        value = saved.read(name)
        return value.to(parameter.device) if value.ndim else value

    def whole_weights(self, network: nn.Module) -> dict[str, Tensor] | None:
        """None."""
        return None
