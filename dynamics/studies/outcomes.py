"""Outcomes of every arm on the held-out scenes of every seed, read from the experiments' files."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dynamics.evaluation.heldout import results_schema
from dynamics.storage.tables import read_table
from dynamics.studies.experiments import LOOP, Experiment, label_size
from dynamics.studies.results import Strata
from dynamics.studies.study import OUTCOME_SCHEMA, Study
from dynamics.training.loss import Task


class Arms:
    """Outcomes on the held-out scenes by arm: one array per seed, scenes in one fixed order."""

    def __init__(self, studies: Sequence[Study]) -> None:
        self.studies = studies

    @property
    def rounds(self) -> int:
        """The last round."""
        return self.studies[0].cfg.rounds

    def has(self, experiment: Experiment) -> bool:
        """True once every seed has finished an experiment."""
        return all(study.is_done(experiment) for study in self.studies)

    def fit(self, experiment: Experiment, task: Task, column: str = "success") -> Strata | None:
        """Outcomes of a fit; None until every seed has them."""
        if not self.has(experiment):
            return None
        paths = [study.folder(experiment) / f"{task}.parquet" for study in self.studies]
        return [_column(read_table(path, OUTCOME_SCHEMA), column) for path in paths]

    def round(self, round_id: int, column: str) -> Strata | None:
        """A column of a round's held-out results; None until every seed has it."""
        if not self.has(LOOP):
            return None
        tables = [
            read_table(study.run.results(round_id), results_schema(study.cfg.evaluate.best_of))
            for study in self.studies
        ]
        return [_column(table, column) for table in tables]

    def labelled(self, size: int, task: Task, column: str = "success") -> Strata | None:
        """Outcomes of a fit on ``size`` labels; at the configured size it is round 0."""
        if size != self.studies[0].cfg.labelled.num_pairs:
            return self.fit(label_size(size, task), task, column)
        names = {"success": "fdp_greedy_success", "copy": "fdp_copy"}
        return self.round(0, names[column] if task == "fdp" else "idm_correct")


def _column(table: pa.Table, column: str) -> NDArray[Any]:
    return np.asarray(table.sort_by("pair_id")[column].to_numpy())
