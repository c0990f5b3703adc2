"""Training batches: transitions in memory, cut by seed and step."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from dynamics.core.config import TrainConfig
from dynamics.core.places import Place
from dynamics.core.records import TRANSITION_SCHEMA
from dynamics.core.seeds import numpy_rng
from dynamics.models.tokens import Rows
from dynamics.models.vlm import UnifiedVLM
from dynamics.storage.tables import codes_matrix, read_table
from dynamics.training.loss import Task
from dynamics.training.objectives import Objective

FitTask = Task | Literal["joint"]
"""Task of a fit; "joint" trains both in one adapter, in turn, half of the steps each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FitJob:
    """One fit: its data, start, settings and folders."""

    task: FitTask
    family: str
    base: Place
    device: str
    transitions: Place
    """TRANSITION_SCHEMA: labelled rows (origin "labelled") and accepted labels."""
    steps: int
    train: TrainConfig
    seed: int
    init_from: Place | None
    """Output of an earlier fit to start from; None = the base."""
    out: Place
    """Adapter folder, with ``train.method`` full a whole checkpoint; complete when it exists."""
    checkpoint_dir: Place


class Batches:
    """Transitions in memory; batch ``step`` is a pure function of seeds."""

    def __init__(self, job: FitJob, model: UnifiedVLM, objective: Objective) -> None:
        self._table = read_table(job.transitions, TRANSITION_SCHEMA).combine_chunks()
        self._job, self._tokens, self._objective = job, model.tokens, objective
        is_labelled = np.array(self._table["origin"].to_pylist()) == "labelled"
        self._labelled_rows = np.flatnonzero(is_labelled)
        self._accepted_rows = np.flatnonzero(~is_labelled)

    def rows_of(self, step: int) -> np.ndarray:
        """Indices of a step's batch: ``labelled_fraction`` of it from the labelled set."""
        rng = numpy_rng(self._job.seed, "batch", step)
        size = self._job.train.batch_size
        share = self._job.train.labelled_fraction if len(self._accepted_rows) else 1.0
        from_labelled = round(size * share) if len(self._labelled_rows) else 0
        parts = [
            rng.choice(self._labelled_rows, from_labelled)
            if from_labelled
            else self._labelled_rows[:0]
        ]
        if from_labelled < size:
            parts.append(rng.choice(self._accepted_rows, size - from_labelled))
        return np.concatenate(parts)

    def task_of(self, step: int) -> Task:
        """The task that a step trains."""
        if self._job.task == "joint":
            return "fdp" if step % 2 else "idm"
        return self._job.task

    def batch(self, step: int) -> tuple[Rows, Tensor | None]:
        """Token rows and their weights, see `Objective.weights`."""
        batch, task = self._table.take(self.rows_of(step)), self.task_of(step)
        source, target = (codes_matrix(batch, name) for name in ("source_codes", "target_codes"))
        actions = batch["action"].to_pylist()
        rows = (
            self._tokens.idm_rows(source, target, actions)
            if task == "idm"
            else self._tokens.fdp_rows(source, actions, target)
        )
        return rows, self._objective.weights(batch, rows, task, self._job.train)
