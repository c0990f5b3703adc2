"""Early stopping: the loss on labelled clips that training leaves out, and the best weights so far.

The share is of the labelled set, never of the held-out one, and the same clips in every round.
Labels that a round accepted for other pairs of these clips are left out, too.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dynamics.models.tokens import IGNORE
from dynamics.training.batches import Batches, FitJob
from dynamics.training.checkpoints import Part, Saved
from dynamics.training.loss import RowLoss
from dynamics.training.trainable import trainable_parameters

LOOK_EVERY = 25
"""Steps between two looks."""
PATIENCE = 6
"""Looks in a row without a lower loss after which a fit ends."""


class Validation:
    """The lowest validation loss of a fit, and the weights that had it.

    It does nothing where ``train.validation_fraction`` is 0.

    Args:
        job: the fit.
        network: whose trained weights are kept.
        batches: with the rows that are left out.
        saved: the checkpoint that the fit goes on from.
    """

    def __init__(
        self, job: FitJob, network: nn.Module, batches: Batches, saved: Saved | None
    ) -> None:
        self._steps, self._network, self._batches = job.steps, network, batches
        self._is_on = bool(job.train.validation_fraction)
        self._found: dict[str, Any] = {"step": 0, "loss": None, "stale": 0}
        self._best: dict[str, Tensor] = {}
        if saved and "validation" in saved.progress:
            self._found = saved.progress["validation"]
            self._best = {name: saved.read(f"best/{name}") for name in saved.below("best/")}

    def is_over(self, agree: Callable[[int], int]) -> bool:
        """True when the loss has not fallen for long; all workers call it, and worker 0 decides."""
        return self._is_on and bool(agree(self._found["stale"] >= PATIENCE))

    def look(self, step: int, loss: RowLoss) -> None:
        """Where a look is due, measure the loss, and keep the weights of the lowest one so far."""
        if not self._is_on or (step % LOOK_EVERY and step != self._steps):
            return
        found = self._loss(loss)
        if self._found["loss"] is None or found < self._found["loss"]:
            self._found = {"step": step, "loss": found, "stale": 0}
            self._best = {
                name: weight.detach().cpu().clone()
                for name, weight in trainable_parameters(self._network).items()
            }
        else:
            self._found = {**self._found, "stale": self._found["stale"] + 1}

    def progress(self) -> dict[str, Any]:
        """What a checkpoint says of it."""
        return {"validation": self._found} if self._is_on else {}

    def figures(self) -> dict[str, float]:
        """The lowest loss so far, for the training log."""
        lowest = self._found["loss"]
        return {} if lowest is None else {"validation_loss": lowest}

    def parts(self) -> dict[str, Part]:
        """The best weights, for a checkpoint."""
        return {f"best/{name}": Part(weight) for name, weight in self._best.items()}

    def take_best(self, job: FitJob) -> FitJob:
        """Give the network the best weights; the job with the steps that they took."""
        if not self._is_on:
            return job
        with torch.no_grad():
            for name, weight in trainable_parameters(self._network).items():
                weight.copy_(self._best[name])
        return replace(job, steps=int(self._found["step"]))

    def _loss(self, loss: RowLoss) -> float:
        """Nats per scored token."""
        total, tokens = 0.0, 0
        device = next(self._network.parameters()).device
        self._network.eval()
        with torch.no_grad():
            for task, rows in self._batches.left_out():
                found = loss(rows.ids.to(device), rows.labels.to(device), None, task)
                total += float(found)
                tokens += int((rows.labels != IGNORE).sum())
        self._network.train()
        return total / tokens
