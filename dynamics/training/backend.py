"""Engines: backward and optimizer steps of a fit."""

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn


class Engine(Protocol):
    """Runs backward and optimizer steps; strategies (DDP, DeepSpeed) bring their own."""

    module: nn.Module
    """The module that computes the loss."""

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients."""

    def step(self) -> None:
        """Clip, update, clear."""

    def unsynced(self) -> AbstractContextManager[None]:
        """Keep gradients on this worker while it is open: for all micro-batches but the last."""


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
