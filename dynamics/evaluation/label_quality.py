"""Quality of pseudo-labels against the ground truth, and the scores it is compared with.

B labels, N of them with a known truth and every score.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dynamics.core.config import ScoreName
from dynamics.core.domain import Domain
from dynamics.core.records import Estimate
from dynamics.evaluation.intervals import Floats, known
from dynamics.evaluation.metrics import estimate_of
from dynamics.evaluation.state_reader import states_by_pair
from dynamics.storage.tables import score_column, score_names

CONFIDENCE: ScoreName = "mean_logprob"
"""The score behind "the confidence" of a label in the report and the guards: the likelihood per
token, of the likelihoods the best calibrated one (docs/RESULTS.md), measured on every sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredLabels:
    """The labels on which scores are compared: those with a known truth and every score."""

    rows: NDArray[np.bool_]
    """Mask of these N among the B labels, [B]."""
    correct: Floats
    """1 or 0, [N]."""
    scores: dict[str, Floats]
    """Measured scores by name, [N] each."""
    verdicts: Floats
    """Correctness of all labels, [B]; NaN where the truth is unknown."""


def scored_labels(labels: pa.Table, truth: pa.Table, domain: Domain) -> ScoredLabels:
    """Correctness and scores of the labels (LABEL_SCHEMA) whose pairs are in ``truth``."""
    # None becomes NaN.
    correct_B = np.array(correct_labels(labels, truth, domain), dtype=np.float64)
    scores = {name: score_column(labels, name) for name in sorted(score_names(labels))}
    rows_B = np.logical_and.reduce([np.isfinite(x) for x in (correct_B, *scores.values())])
    return ScoredLabels(
        rows=rows_B,
        correct=correct_B[rows_B],
        scores={name: score_B[rows_B] for name, score_B in scores.items()},
        verdicts=correct_B,
    )


def label_accuracy(
    accepted_B: NDArray[np.bool_], correct: Sequence[bool | None] | None
) -> dict[str, Estimate]:
    """Quality of a round's pseudo-labels, before and after the filter.

    ``label/accepted_fraction`` always; with the truth also ``label/accuracy`` over all labels and
    ``label/accuracy_accepted`` over the accepted ones. A label is correct when carrying it out on
    the true source state gives the true target state. Pairs that the truth leaves out do not count.

    Args:
        accepted_B: The decisions.
        correct: What `correct_labels` says of the same labels, or None for real video.
    """
    columns: dict[str, NDArray[Any]] = {"label/accepted_fraction": accepted_B}
    if correct is not None:
        columns["label/accuracy"] = known(correct)
        columns["label/accuracy_accepted"] = known(np.array(correct, dtype=object)[accepted_B])
    return {name: estimate_of(name, values) for name, values in columns.items() if len(values)}


def correct_labels(labels: pa.Table, truth: pa.Table, domain: Domain) -> list[bool | None]:
    """Per label (LABEL_SCHEMA), True when its action has the true effect; None without truth."""
    states = states_by_pair(truth)
    columns = (labels[name].to_pylist() for name in ("pair_id", "action"))
    return [
        domain.outcome(action, states[pair][0]) == states[pair][1] if pair in states else None
        for pair, action in zip(*columns, strict=True)
    ]
