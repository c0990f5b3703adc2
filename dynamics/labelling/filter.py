"""The filter of pseudo-labels: pure decisions that carry their reason.

Every rule is a function of the labels alone; ties go to the smaller label_id, so that equal labels
give equal decisions on any machine.
"""

from collections.abc import Iterator
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field

from dynamics.core.config import FilterConfig, FilterRule
from dynamics.core.errors import UserError
from dynamics.core.records import DECISION_SCHEMA
from dynamics.storage.tables import score_column, score_names

# B labels.
Mask = NDArray[np.bool_]
Scores = NDArray[np.float32]


def decide(labels: pa.Table, cfg: FilterConfig) -> pa.Table:
    """Accept or reject every label.

    Args:
        labels: LABEL_SCHEMA, any order, one row per label_id.
        cfg: Score and rule.

    Returns:
        DECISION_SCHEMA, one row per label, sorted by label_id.

    Raises:
        UserError: the configured score was not measured on these labels.
        ValueError: a label_id occurs twice.
    """
    labels = labels.sort_by("label_id")
    if pc.count_distinct(labels["label_id"]).as_py() != labels.num_rows:
        raise ValueError("labels repeat a label_id; merge them through the ledger first")
    empty = np.array([not text.strip() for text in labels["action"].to_pylist()], dtype=bool)
    if not empty.all() and cfg.score not in score_names(labels):
        raise UserError(
            f"filter.score={cfg.score} was not measured on these labels; "
            "label again with this setting in a new run_dir"
        )
    scores = score_column(labels, cfg.score).astype(np.float32)
    finite = np.isfinite(scores)
    eligible = ~empty & finite
    accepted = cfg.rule.accepted(labels, scores, eligible)
    reasons = np.select(
        [empty, ~finite, accepted],
        ["empty_action", "non_finite_score", "accepted"],
        default=cfg.rule.reason,
    )
    columns = [labels["label_id"], labels["pair_id"], pa.array(accepted), pa.array(scores)]
    return pa.table(
        [*columns, pa.array(reasons.tolist(), pa.string())], names=DECISION_SCHEMA.names
    ).cast(DECISION_SCHEMA)


class ThresholdRule(FilterRule):
    """Accept labels that score at least ``threshold``."""

    kind: Literal["threshold"] = "threshold"
    threshold: float
    reason: ClassVar[str] = "below_threshold"

    def accepted(self, labels: pa.Table, scores_B: Scores, eligible_B: Mask) -> Mask:
        """See `FilterRule.accepted`."""
        # Compared as float32: a label that scores exactly the configured decimal is accepted.
        return eligible_B & (scores_B >= np.float32(self.threshold))


class TopFractionRule(FilterRule):
    """Accept the best ``fraction`` of the round's labels."""

    kind: Literal["top_fraction"] = "top_fraction"
    fraction: float = Field(default=0.5, gt=0, le=1)
    reason: ClassVar[str] = "outside_top_fraction"

    def accepted(self, labels: pa.Table, scores_B: Scores, eligible_B: Mask) -> Mask:
        """See `FilterRule.accepted`."""
        # The small term undoes binary rounding: 0.29 of 100 is 29, not 28.
        num_accepted = int(self.fraction * len(scores_B) + 1e-9)
        return _best(_by_score(scores_B, eligible_B), num_accepted, len(scores_B))


class StratifiedTopKRule(FilterRule):
    """Round-robin over classes, best unused label of each, until ``k`` (paper, Algorithm 1)."""

    kind: Literal["stratified_top_k"] = "stratified_top_k"
    k: int = Field(default=7000, ge=1)
    """Labels to accept of every folder of the pool (the paper: 7,000 of each source)."""
    reason: ClassVar[str] = "outside_top_k"

    def accepted(self, labels: pa.Table, scores_B: Scores, eligible_B: Mask) -> Mask:
        """See `FilterRule.accepted`."""
        accepted_B = np.zeros(len(scores_B), dtype=bool)
        best_first = _by_score(scores_B, eligible_B)
        for of_folder, classes in _by_folder(best_first, labels["clip_class"]):
            accepted_B |= _best(_round_robin(of_folder, classes), self.k, len(scores_B))
        return accepted_B


RULES: dict[str, type[FilterRule]] = {
    "threshold": ThresholdRule,
    "top_fraction": TopFractionRule,
    "stratified_top_k": StratifiedTopKRule,
}
"""Rules by name: ``kind`` of ``filter.rule`` to the class of its other keys."""


def _by_folder(
    best_first: list[int], clip_class: pa.ChunkedArray
) -> Iterator[tuple[list[int], list[str]]]:
    """Rows of every folder of the pool, with all rows' classes.

    The paper accepts K of each source. A class is ``folder/class`` in a pool of several folders and
    has no slash in a pool of one.
    """
    classes = clip_class.to_pylist()
    folders = [name.partition("/")[0] if "/" in name else "" for name in classes]
    for folder in sorted(set(folders)):
        yield [row for row in best_first if folders[row] == folder], classes


def _by_score(scores: Scores, eligible: Mask) -> list[int]:
    """Eligible rows, best first. Rows are in label_id order, which a stable sort keeps in ties."""
    order = np.argsort(-scores, kind="stable")
    return [int(row) for row in order if eligible[row]]


def _round_robin(best_first: list[int], classes: list[str]) -> list[int]:
    """One label of every class per pass, each the best unused one of its class.

    Within a pass the better label comes first, so a last, incomplete pass takes the best on offer
    (the paper's Algorithm 1 leaves this open).
    """
    used: dict[str, int] = {}
    passes = []
    for row in best_first:
        passes.append(used.get(classes[row], 0))
        used[classes[row]] = passes[-1] + 1
    return [best_first[place] for place in np.argsort(passes, kind="stable")]


def _best(order: list[int], num_accepted: int, num_rows: int) -> Mask:
    accepted = np.zeros(num_rows, dtype=bool)
    accepted[order[:num_accepted]] = True
    return accepted
