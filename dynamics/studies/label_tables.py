"""Claim (b), the labels: their correctness, their scores, and the gain from each filter."""

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
    confidence,
    expected_calibration_error,
    reliability_curve,
    risk_coverage,
)
from dynamics.evaluation.intervals import Floats, known
from dynamics.evaluation.label_quality import (
    ScoredLabels,
    correct_labels,
    scored_labels,
)
from dynamics.labelling.confidence import SCORES as SCORE_NAMES
from dynamics.storage.ledger import Ledger, is_accepted
from dynamics.storage.tables import read_table
from dynamics.studies.experiments import ACCEPTED_FRACTION, FILTER_ARMS, LOOP, SCORES, label_filter
from dynamics.studies.fits import decisions_of
from dynamics.studies.outcomes import Arms
from dynamics.studies.results import Number, Row, Table, difference, mean
from dynamics.studies.study import Study


@dataclass(frozen=True, slots=True)
class _Greedy:
    """One seed's greedy labels of round 1, with every score."""

    labels: pa.Table
    """LABEL_SCHEMA."""
    scored: ScoredLabels
    domain: Domain

    def accepted(self, arm: str) -> Floats:
        """Correctness of what a filter accepts, where the truth is known."""
        by_id = pc.sort_indices(self.labels["label_id"]).to_numpy()  # the order of decisions
        decisions = decisions_of(arm, self.labels, self.domain)
        accepted = is_accepted(self.labels.take(by_id), decisions)
        correct: Floats = self.scored.verdicts[by_id][accepted]
        return correct[np.isfinite(correct)]


Scored = dict[str, list[tuple[Floats, Floats]]]
"""Score name to one (score or confidence, correct) a seed."""

COVERAGES = tuple(range(10, 101, 10))
"""Percent of the labels, the most trusted first."""


def tables(arms: Arms) -> dict[str, Table]:
    """Tables of the loop's labels, of the filters and of the scores."""
    greedy = _greedy(arms) if arms.has(SCORES) else []
    scored = _scored(greedy)
    return {
        "labels": _labels(arms),
        "filters": _filters(arms, greedy, scored),
        "risk-coverage": _risk_coverage(scored),
        "reliability": _reliability(scored),
    }


def _greedy(arms: Arms) -> list[_Greedy]:
    tables = [read_table(study.scored_labels, LABEL_SCHEMA) for study in arms.studies]
    return [
        _Greedy(table, scored_labels(table, _truth(study), study.domain), study.domain)
        for study, table in zip(arms.studies, tables, strict=True)
    ]


def _labels(arms: Arms) -> Table:
    rows: list[Row] = []
    measured = arms.has(LOOP) and not arms.studies[0].cfg.pool.parts  # the pool's truth is known
    for round_id in range(1, arms.rounds + 1) if measured else ():
        everything, accepted = [], []
        for study in arms.studies:
            ledger = Ledger(study.run.ledger)
            labels = ledger.labels(round_id)
            verdicts = correct_labels(labels, _truth(study), study.domain)
            rows_B = is_accepted(labels, ledger.decisions(round_id))
            everything.append(known(verdicts))
            accepted.append(known(np.array(verdicts, dtype=object)[rows_B]))
        name = f"round {round_id}"
        cells = {"correct, all": mean(everything, f"labels {name}")}
        if all(map(len, accepted)):
            # The name seeds the published interval.
            cells["correct, accepted"] = mean(accepted, f"kept labels {name}")
        rows.append(Row(name=name, cells=cells))
    return Table(
        title="(b) The labels of every round",
        note="Correct: carried out in the simulator the sentence leads to the next state.",
        columns=("correct, all", "correct, accepted"),
        rows=tuple(rows),
    )


def _truth(study: Study) -> pa.Table:
    return read_table(study.run.truth, TRUTH_SCHEMA)


def _filters(arms: Arms, greedy: Sequence[_Greedy], scored: Scored) -> Table:
    rows: list[Row] = []
    everything = arms.fit(label_filter("all"), "fdp")
    for arm in FILTER_ARMS if everything is not None else ():
        outcomes = arms.fit(label_filter(arm), "fdp")
        if outcomes is None or everything is None:
            continue
        cells = {"FDP, greedy": mean(outcomes, f"filter {arm}")}
        if arm != "all":
            cells["more than all labels"] = difference(outcomes, everything, f"filter {arm} all")
        rows.append(Row(name=arm, cells=cells | _precision(arm, greedy) | _trust(arm, scored)))
    return Table(
        title="(b) Filters in round 1",
        note="The IDM's greedy labels of the pool, scored and cut offline; then one FDP each, "
        f"from round 0's, the same steps. A score accepts its best {ACCEPTED_FRACTION:.0%}. ECE: "
        "how far exp(mean log-prob), exp(sum log-prob), exp(min log-prob) or the share of agreeing "
        "samples is from the share that is correct.",
        columns=("FDP, greedy", "more than all labels", "labels correct", "AUROC", "ECE"),
        rows=tuple(rows),
    )


def _precision(arm: str, greedy: Sequence[_Greedy]) -> dict[str, Number]:
    """Share of the labels that an arm accepts that is correct."""
    if arm in ("nothing", "true_labels"):
        return {}
    accepted = [one.accepted(arm) for one in greedy]
    if not all(map(len, accepted)):
        return {}
    return {"labels correct": mean(accepted, f"precision {arm}")}


def _trust(arm: str, scored: Scored) -> dict[str, Number]:
    """Ranking (AUROC) and calibration (ECE) of a score."""
    of_seeds = scored.get(arm, [])
    cells = {}
    if of_seeds and all(0 < correct.mean() < 1 for _, correct in of_seeds):
        cells["AUROC"] = _by_seed([auroc(score, correct) for score, correct in of_seeds])
    if of_confidence := _confidences(scored).get(arm):
        errors = [expected_calibration_error(sure, correct) for sure, correct in of_confidence]
        cells["ECE"] = _by_seed([error.value for error in errors])
    return cells


def _risk_coverage(scored: Scored) -> Table:
    rows = []
    curves = {
        name: [risk_coverage(score, correct) for score, correct in of_seeds]
        for name, of_seeds in scored.items()
    }
    for percent in COVERAGES if curves else ():
        cells = {
            name: _by_seed([1 - risk[_last(coverage, percent)] for coverage, risk in of_seeds])
            for name, of_seeds in curves.items()
        }
        rows.append(Row(name=f"best {percent} %", cells=cells))
    return Table(
        title="(b) How correct the most trusted labels are",
        note="Round 1's greedy labels, the most trusted first by each score (1 - risk at a "
        "coverage). In brackets: the lowest and the highest seed.",
        columns=tuple(SCORE_NAMES),
        rows=tuple(rows),
    )


def _last(coverage: NDArray[np.float64], percent: int) -> int:
    """Index of the largest coverage within ``percent``; the first where none is."""
    return max(0, int(np.searchsorted(coverage, percent / 100 + 1e-9, side="right")) - 1)


def _reliability(scored: Scored) -> Table:
    rows = []
    for name, of_seeds in _confidences(scored).items():
        curves = [reliability_curve(sure, correct) for sure, correct in of_seeds]
        # Ties can leave a seed with fewer bins.
        for number, bins in enumerate(zip(*curves, strict=False), start=1):
            cells = {
                "confidence": _by_seed([one.confidence for one in bins]),
                "correct": _by_seed([one.correct.value for one in bins]),
            }
            rows.append(Row(name=f"{name}, bin {number}", cells=cells))
    return Table(
        title="(b) Reliability: how sure, and how often correct",
        note="Round 1's greedy labels in ten bins of equal size.",
        columns=("confidence", "correct"),
        rows=tuple(rows),
        printed=False,
    )


def _scored(greedy: Sequence[_Greedy]) -> Scored:
    """The scores that every seed's labels have; none when a seed has no scored label."""
    seeds = [one.scored for one in greedy]
    if not seeds or not all(len(one.correct) for one in seeds):
        return {}
    return {
        name: [(one.scores[name], one.correct) for one in seeds]
        for name in SCORE_NAMES
        if all(name in one.scores for one in seeds)
    }


def _confidences(scored: Scored) -> Scored:
    """Scores that can be read as a probability of being correct, as that probability."""
    return {
        name: [(confidence(score, scale), correct) for score, correct in of_seeds]
        for name, of_seeds in scored.items()
        if (scale := SCORE_NAMES[name].scale)
    }


def _by_seed(values: Sequence[float]) -> Number:
    """Statistic of 12,000 labels; the interval is its range over seeds, which vary most."""
    low, high = min(values), max(values)
    return Number(value=float(np.mean(values)), low=low, high=high, seeds=tuple(values))
