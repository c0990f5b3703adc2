"""Labels that the filter accepted and rejected, and the calibration of their confidence."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dynamics.core.domain import Domain
from dynamics.core.records import Estimate
from dynamics.evaluation.calibration import (
    ReliabilityBin,
    area_under_risk_coverage,
    auroc,
    confidence,
    expected_calibration_error,
    reliability_curve,
    risk_coverage,
)
from dynamics.evaluation.intervals import Floats
from dynamics.evaluation.label_quality import (
    CONFIDENCE,
    correct_labels,
    scored_labels,
)
from dynamics.report.pictures import Frames, Picture, picture
from dynamics.storage.tables import score_column

Rows = NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelTables:
    """A round's labels with their decisions, and what is read of some or of all of them.

    A "decided" table has columns of LABEL_SCHEMA, then ``accepted``, ``score`` and ``reason``.
    """

    accepted: NDArray[np.bool_]
    """The decisions, [B]."""
    score: NDArray[np.float32]
    """What they compared, [B]."""
    take: Callable[[Rows], pa.Table]
    """Reads some of the B decided labels, in the order of the given rows."""
    read: Callable[[], pa.Table]
    """Reads all of them; called where there is a truth."""
    pairs: Callable[[Sequence[str]], pa.Table]
    """Reads ``source_codes`` and ``target_codes`` of pairs, in the order of the given pair_ids."""
    truth: pa.Table | None
    """TRUTH_SCHEMA; None for real video."""
    domain: Domain


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelExample:
    """One pseudo-label with its decision."""

    rank: int
    """1 = the highest score of those with the same decision."""
    source: Picture
    target: Picture
    action: str
    score: float
    """NaN when the label has none."""
    confidence: float
    """exp(mean token log-prob); NaN without tokens."""
    reason: str
    true_action: str | None
    """None without ground truth."""
    correct: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelExamples:
    """Labels of one round, accepted or rejected."""

    total: int
    """Number of labels; the examples are spread over them."""
    examples: Sequence[LabelExample]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelsView:
    """A round's labels on the page."""

    accepted: LabelExamples
    rejected: LabelExamples

    @property
    def has_truth(self) -> bool:
        """True when the ground truth of any example is known."""
        shown = (*self.accepted.examples, *self.rejected.examples)
        return any(one.true_action is not None for one in shown)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreView:
    """Ranking of the labels by one score."""

    name: str
    coverage: Floats
    risk: Floats
    """Error rate of the labels accepted at each coverage; see `risk_coverage`."""
    area: float
    auroc: float | None
    """None when all labels are correct, or all wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationView:
    """Calibration of the confidence of a round's labels."""

    round_id: int
    num_labels: int
    """Labels with a score and a known truth; only these count here."""
    error: Estimate
    """Expected calibration error."""
    bins: Sequence[ReliabilityBin]
    scores: Sequence[ScoreView]
    """Measured scores, the best ranking first."""
    accepted: float
    """Share that the filter accepted."""
    accepted_risk: float
    """Share of these that is wrong; NaN when it accepted none."""


def chosen_labels(tables: LabelTables, num_examples: int = 6) -> tuple[pa.Table, pa.Table]:
    """At most ``num_examples`` accepted and as many rejected labels, spread over their ranks.

    The columns are those of `LabelExample`, with ``source_codes`` and ``target_codes``.
    """
    accepted, rejected = (
        _chosen(tables, _by_score(tables.score, np.flatnonzero(rows)), num_examples)
        for rows in (tables.accepted, ~tables.accepted)
    )
    return accepted, rejected


def labels_view(
    tables: LabelTables, chosen: tuple[pa.Table, pa.Table], frames: Frames
) -> LabelsView:
    """The labels of `chosen_labels`, with their frames."""
    totals = int(tables.accepted.sum()), int((~tables.accepted).sum())
    accepted, rejected = (
        LabelExamples(total=total, examples=[_example(row, frames) for row in rows.to_pylist()])
        for total, rows in zip(totals, chosen, strict=True)
    )
    return LabelsView(accepted=accepted, rejected=rejected)


def calibration(tables: LabelTables, round_id: int) -> CalibrationView | None:
    """Calibration and ranking of a round's labels; None when none has both score and truth."""
    if tables.truth is None:
        return None
    scored = scored_labels(tables.read(), tables.truth, tables.domain)
    correct = scored.correct
    if not len(correct):
        return None
    sure = confidence(scored.scores[CONFIDENCE])
    accepted = tables.accepted[scored.rows]
    views = [_score_view(name, score, correct) for name, score in scored.scores.items()]
    return CalibrationView(
        round_id=round_id,
        num_labels=len(correct),
        error=expected_calibration_error(sure, correct),
        bins=reliability_curve(sure, correct),
        scores=sorted(views, key=lambda view: view.area),
        accepted=float(accepted.mean()),
        accepted_risk=float(1 - correct[accepted].mean()) if accepted.any() else float("nan"),
    )


def _score_view(name: str, score: Floats, correct: Floats) -> ScoreView:
    coverage, risk = risk_coverage(score, correct)
    return ScoreView(
        name=name,
        coverage=coverage,
        risk=risk,
        area=area_under_risk_coverage(score, correct),
        auroc=auroc(score, correct) if 0 < correct.mean() < 1 else None,
    )


def _by_score(score: NDArray[np.float32], rows: Rows) -> Rows:
    """Rows by score, best first, without a score last; ties stay in label_id order."""
    ranked: Rows = rows[np.argsort(-score[rows], kind="stable")]
    return ranked


def _chosen(tables: LabelTables, ranked: Rows, num_examples: int) -> pa.Table:
    if not len(ranked):
        return pa.table({})
    places = np.unique(np.linspace(0, len(ranked) - 1, num_examples).round().astype(np.intp))
    labels = tables.take(ranked[places])
    pairs = tables.pairs(labels["pair_id"].to_pylist())
    true_actions, correct = _truth_of(labels, tables)
    return pa.table(
        {
            "rank": places + 1,
            "source_codes": pairs["source_codes"],
            "target_codes": pairs["target_codes"],
            "action": labels["action"],
            "score": labels["score"],
            "confidence": confidence(score_column(labels, CONFIDENCE)),
            "reason": labels["reason"],
            "true_action": pa.array(true_actions, pa.string()),
            "correct": pa.array(correct, pa.bool_()),
        }
    )


def _example(row: dict[str, Any], frames: Frames) -> LabelExample:
    source, target = (picture(frames.of(row.pop(f"{end}_codes"))) for end in ("source", "target"))
    return LabelExample(source=source, target=target, **row)


def _truth_of(labels: pa.Table, tables: LabelTables) -> tuple[list[str | None], list[bool | None]]:
    """True sentence and verdict per label, None where the truth is unknown."""
    if (truth := tables.truth) is None:
        return [None] * labels.num_rows, [None] * labels.num_rows
    where = pc.index_in(labels["pair_id"], value_set=truth["pair_id"].combine_chunks())
    return truth["action"].take(where).to_pylist(), correct_labels(labels, truth, tables.domain)
