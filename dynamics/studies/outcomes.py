"""Outcomes of every arm on the held-out scenes of every seed, read from the experiments' files."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from dynamics.evaluation.comparison import COMPARED
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

    @property
    def has_truth(self) -> bool:
        """False where no rules are known: the FDP is measured by the codes that change, then."""
        return self.studies[0].has_truth

    def fit(self, experiment: Experiment, task: Task, column: str = "success") -> Strata | None:
        """Outcomes of a fit; None until every seed has them."""
        if not self.has(experiment):
            return None
        if (task, column) == ("fdp", "success") and not self.has_truth:
            column = "changed"
        paths = [study.folder(experiment) / f"{task}.parquet" for study in self.studies]
        return _strata([read_table(path, OUTCOME_SCHEMA) for path in paths], column)

    def round(self, round_id: int, column: str) -> Strata | None:
        """A column of a round's held-out results; None until every seed has it."""
        tables = self._results(round_id)
        if tables is None:
            return None
        column = column if self.has_truth else COMPARED.get(column, column)
        return _strata(tables, column)

    def action_first(self, round_id: int) -> Strata | None:
        """Whether the true sentence beats all others that were asked, beside chance, [N, 2].

        None until every seed has it, and where there is no other sentence.
        """
        tables = self._results(round_id) or ()
        margins = [[one for one in table["action_margins"].to_pylist() if one] for table in tables]
        if not margins or not all(margins):
            return None
        return [
            np.array([(min(one) > 0, 1 / (1 + len(one))) for one in of_seed]) for of_seed in margins
        ]

    def _results(self, round_id: int) -> list[pa.Table] | None:
        if not self.has(LOOP):
            return None
        return [
            read_table(study.run.results(round_id), results_schema(study.cfg.evaluate.best_of))
            for study in self.studies
        ]

    def labelled(self, size: int, task: Task, column: str = "success") -> Strata | None:
        """Outcomes of a fit on ``size`` labels; at the configured size it is round 0."""
        if size != self.studies[0].cfg.labelled.num_pairs:
            return self.fit(label_size(size, task), task, column)
        names = {"success": "fdp_greedy_success", "copy": "fdp_copy"}
        return self.round(0, names[column] if task == "fdp" else "idm_correct")


def _strata(tables: Sequence[pa.Table], column: str) -> Strata | None:
    """The known values of a column, None where a seed has none.

    Of which pairs they are is the same for all arms: those whose truth is known, or whose codes
    change.
    """
    found = [table.sort_by("pair_id")[column].drop_null().to_numpy() for table in tables]
    return found if all(map(len, found)) else None
