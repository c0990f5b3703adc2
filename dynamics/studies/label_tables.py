"""Claim (b), the labels: how right they are, how well a score tells, and what a filter buys."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dynamics.core.domain import Domain
from dynamics.core.records import LABEL_SCHEMA, TRUTH_SCHEMA
from dynamics.evaluation.calibration import (
    auroc,
    expected_calibration_error,
    reliability_curve,
    risk_coverage,
)
from dynamics.evaluation.label_quality import right_labels
from dynamics.labelling.confidence import SCORES
from dynamics.storage.ledger import Ledger, is_accepted
from dynamics.storage.tables import read_table, score_column
from dynamics.studies.experiments import FILTER_ARMS, KEPT_FRACTION
from dynamics.studies.fits import decisions_of
from dynamics.studies.outcomes import Arms
from dynamics.studies.results import Number, Row, Table, difference, mean
from dynamics.studies.study import Study


@dataclass(frozen=True, slots=True)
class _Greedy:
    """One seed's greedy labels of round 1, with every score."""

    labels: pa.Table
    """LABEL_SCHEMA."""
    right: NDArray[np.float64]
    domain: Domain

    def scored(self, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Score and rightness of the labels that have the score."""
        score = score_column(self.labels, name)
        ended = np.isfinite(score)
        return score[ended], self.right[ended]

    def right_of_kept(self, arm: str) -> NDArray[np.float64]:
        """Rightness of what a filter keeps."""
        by_id = pc.sort_indices(self.labels["label_id"]).to_numpy()  # the order of decisions
        decisions = decisions_of(arm, self.labels, self.domain)
        accepted = is_accepted(self.labels.take(by_id), decisions)
        right: NDArray[np.float64] = self.right[by_id][accepted]
        return right


Scored = dict[str, list[tuple[NDArray[np.float64], NDArray[np.float64]]]]
"""By score: one (score, right) a seed."""

COVERAGES = tuple(range(10, 101, 10))
"""Percent of the labels, the most trusted first."""


def tables(arms: Arms) -> dict[str, Table]:
    """What the loop's labels were worth, and the scores and filters held against each other."""
    greedy = _greedy(arms) if arms.has("scores") else []
    scored: Scored = {}
    if greedy:
        scored = {name: [one.scored(name) for one in greedy] for name in SCORES}
    return {
        "labels": _labels(arms),
        "filters": _filters(arms, greedy, scored),
        "risk-coverage": _risk_coverage(scored),
        "reliability": _reliability(scored),
    }


def _greedy(arms: Arms) -> list[_Greedy]:
    tables = [read_table(study.scored_labels, LABEL_SCHEMA) for study in arms.studies]
    return [
        _Greedy(table, _right(study, table), study.domain)
        for study, table in zip(arms.studies, tables, strict=True)
    ]


def _labels(arms: Arms) -> Table:
    rows: list[Row] = []
    for round_id in range(1, arms.rounds + 1) if arms.has("loop") else ():
        known, kept = [], []
        for study in arms.studies:
            ledger = Ledger(study.run.ledger)
            labels = ledger.labels(round_id)
            right = _right(study, labels)
            known.append(right)
            kept.append(right[is_accepted(labels, ledger.decisions(round_id))])
        name = f"round {round_id}"
        cells = {"right, all": mean(known, f"labels {name}")}
        if all(map(len, kept)):
            cells["right, kept"] = mean(kept, f"kept labels {name}")
        rows.append(Row(name=name, cells=cells))
    return Table(
        title="(b) The labels of every round",
        note="Right: carried out in the simulator the sentence leads to the next state.",
        columns=("right, all", "right, kept"),
        rows=tuple(rows),
    )


def _right(study: Study, labels: pa.Table) -> NDArray[np.float64]:
    """1 where a label is right; labels of pairs without a truth are wrong: they have no action."""
    truth = read_table(study.run.truth, TRUTH_SCHEMA)
    verdicts = right_labels(labels, truth, study.domain)
    return np.array([verdict is True for verdict in verdicts], dtype=np.float64)


def _filters(arms: Arms, greedy: Sequence[_Greedy], scored: Scored) -> Table:
    rows: list[Row] = []
    everything = arms.unit("filter/all", "fdp")
    for arm in FILTER_ARMS if everything is not None else ():
        outcomes = arms.unit(f"filter/{arm}", "fdp")
        if outcomes is None or everything is None:
            continue
        cells = {"FDP, greedy": mean(outcomes, f"filter {arm}")}
        if arm != "all":
            cells["more than all labels"] = difference(outcomes, everything, f"filter {arm} all")
        rows.append(Row(name=arm, cells=cells | _precision(arm, greedy) | _trust(arm, scored)))
    return Table(
        title="(b) Filters in round 1",
        note="The IDM's greedy labels of the pool, scored and cut offline; then one FDP each, "
        f"from round 0's, the same steps. A score keeps its best {KEPT_FRACTION:.0%}. ECE: how "
        "far exp(mean log-prob), exp(sum log-prob), exp(min log-prob) or the share of agreeing "
        "samples is from the share that is right.",
        columns=("FDP, greedy", "more than all labels", "labels right", "AUROC", "ECE"),
        rows=tuple(rows),
    )


def _precision(arm: str, greedy: Sequence[_Greedy]) -> dict[str, Number]:
    """How many of the labels that an arm keeps are right."""
    if arm in ("nothing", "true_labels"):
        return {}
    kept = [one.right_of_kept(arm) for one in greedy]
    return {"labels right": mean(kept, f"precision {arm}")} if all(map(len, kept)) else {}


def _trust(arm: str, scored: Scored) -> dict[str, Number]:
    """How a score ranks and how it is calibrated."""
    of_seeds = scored.get(arm, [])
    cells = {}
    if of_seeds and all({*right.tolist()} == {0.0, 1.0} for _, right in of_seeds):
        cells["AUROC"] = _by_seed([auroc(score, right) for score, right in of_seeds])
    if of_seeds and arm in CONFIDENCES and all(len(right) for _, right in of_seeds):
        confident = [(_confidence(arm, score), right) for score, right in of_seeds]
        errors = [expected_calibration_error(score, right).value for score, right in confident]
        cells["ECE"] = _by_seed(errors)
    return cells


def _risk_coverage(scored: Scored) -> Table:
    rows = []
    curves = {
        name: [risk_coverage(score, right) for score, right in of_seeds]
        for name, of_seeds in scored.items()
        if all(len(right) for _, right in of_seeds)
    }
    for percent in COVERAGES if curves else ():
        cells = {
            name: _by_seed([1 - risk[_last(coverage, percent)] for coverage, risk in of_seeds])
            for name, of_seeds in curves.items()
        }
        rows.append(Row(name=f"best {percent} %", cells=cells))
    return Table(
        title="(b) How right the most trusted labels are",
        note="Round 1's greedy labels, the most trusted first by each score (1 - risk at a "
        "coverage). In brackets: the lowest and the highest seed.",
        columns=tuple(SCORES),
        rows=tuple(rows),
    )


def _last(coverage: NDArray[np.float64], percent: int) -> int:
    """Index of the largest coverage within ``percent``; the first where none is."""
    return max(0, int(np.searchsorted(coverage, percent / 100 + 1e-9, side="right")) - 1)


def _reliability(scored: Scored) -> Table:
    rows = []
    for name, of_seeds in scored.items():
        if name not in CONFIDENCES or not all(len(right) for _, right in of_seeds):
            continue
        curves = [reliability_curve(_confidence(name, score), right) for score, right in of_seeds]
        # Ties can leave a seed with fewer bins.
        for number, bins in enumerate(zip(*curves, strict=False), start=1):
            cells = {
                "confidence": _by_seed([one.confidence for one in bins]),
                "right": _by_seed([one.right.value for one in bins]),
            }
            rows.append(Row(name=f"{name}, bin {number}", cells=cells))
    return Table(
        title="(b) Reliability: how sure, and how often right",
        note="Round 1's greedy labels in ten bins of equal size.",
        columns=("confidence", "right"),
        rows=tuple(rows),
        printed=False,
    )


CONFIDENCES = ("mean_logprob", "sum_logprob", "min_logprob", "agreement")
"""Scores that can be read as a probability of being right."""


def _confidence(arm: str, score: NDArray[np.float64]) -> NDArray[np.float64]:
    """A score as a probability of being right."""
    return np.clip(score if arm == "agreement" else np.exp(score), 0, 1)


def _by_seed(values: Sequence[float]) -> Number:
    """A statistic of 12,000 labels: what varies is the seed, so its range is the interval."""
    low, high = min(values), max(values)
    return Number(value=float(np.mean(values)), low=low, high=high, seeds=tuple(values))
