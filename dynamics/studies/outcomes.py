"""What every arm did on the held-out scenes of every seed, read from the units' files."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dynamics.evaluation.heldout import results_schema
from dynamics.storage.tables import read_table
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

    def has(self, unit: str) -> bool:
        """Whether every seed has finished a unit."""
        return all(study.is_done(unit) for study in self.studies)

    def unit(self, name: str, task: Task, column: str = "success") -> Strata | None:
        """A unit's outcomes; None until every seed has them."""
        if not self.has(name):
            return None
        paths = [study.unit(name) / f"{task}.parquet" for study in self.studies]
        return [_column(read_table(path, OUTCOME_SCHEMA), column) for path in paths]

    def round(self, round_id: int, column: str) -> Strata | None:
        """A column of a round's evaluation table; None until every seed has it."""
        if not self.has("loop"):
            return None
        tables = [
            read_table(study.run.results(round_id), results_schema(study.cfg.evaluate.best_of))
            for study in self.studies
        ]
        return [_column(table, column) for table in tables]

    def labelled(self, size: int, task: Task, column: str = "success") -> Strata | None:
        """Fits on ``size`` labels; round 0 is the one at the configured size."""
        if size != self.studies[0].cfg.labelled.num_pairs:
            return self.unit(f"size/{size}-{task}", task, column)
        names = {"success": "fdp_greedy_success", "copy": "fdp_copy"}
        return self.round(0, names[column] if task == "fdp" else "idm_correct")


def _column(table: pa.Table, column: str) -> NDArray[np.float64]:
    ordered = table.sort_by("pair_id")
    return np.array(ordered[column].to_pylist(), dtype=np.float64)
