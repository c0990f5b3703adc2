"""Training objectives. To add one: a module with two functions, a line in OBJECTIVES."""

from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from torch import Tensor

    from dynamics.core.config import ObjectiveName, TrainConfig
    from dynamics.models.tokens import Rows
    from dynamics.training.batches import Batch
    from dynamics.training.loss import Task

OBJECTIVES: dict[str, str] = {"nll": "dynamics.training.objectives.nll"}
"""Name to module, as import strings so that configuration loads without torch."""


class Objective(Protocol):
    """Functions of an objective's module: a step descends the sum of weight times loss.

    B rows, T positions, S scored positions, V answers that the task allows.
    """

    def weights(
        self, batch: "Batch", rows: "Rows", task: "Task", train: "TrainConfig"
    ) -> "Tensor | None":
        """Weight of the token at every position, [B, T]; None = all count alike.

        Args:
            batch: The transitions.
            rows: Their token rows; where ``rows.labels`` is IGNORE, no weight is read.
            task: The task of the rows.
            train: The settings of this task.
        """
        ...

    def losses(self, logits_SV: "Tensor", labels_S: "Tensor") -> "Tensor":
        """Loss of every scored token, [S]."""
        ...


def objective(name: "ObjectiveName") -> Objective:
    """The objective of a name in OBJECTIVES."""
    return cast("Objective", import_module(OBJECTIVES[name]))
