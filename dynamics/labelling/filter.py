"""The filter of pseudo-labels: pure decisions that carry their reason.

Every rule is a function of the labels alone; ties go to the smaller label_id, so that equal labels
give equal decisions on any machine. Of each label a few bytes are in memory: its score, whether it
says anything, and the columns that the rule reads, as numbers of their distinct values.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field

from dynamics.core.config import FilterConfig, FilterRule
from dynamics.core.errors import UserError
from dynamics.core.records import DECISION_SCHEMA, LABEL_SCHEMA
from dynamics.storage.tables import score_column, score_names

# B labels, C classes.
Mask = NDArray[np.bool_]
Rows = NDArray[np.int64]
Scores = NDArray[np.float32]

ReadLabels = Callable[[Sequence[str]], Iterator[pa.Table]]
"""Reads the named columns of labels (LABEL_SCHEMA) from the beginning, some rows at a time; sorted
by label_id, one row per label_id."""


def decide(labels: pa.Table, cfg: FilterConfig) -> pa.Table:
    """Accept or reject every label of a table.

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
    found = iter_decisions(lambda columns: iter([labels.select(columns)]), cfg)
    return pa.concat_tables([DECISION_SCHEMA.empty_table(), *found])


def iter_decisions(read: ReadLabels, cfg: FilterConfig) -> Iterator[pa.Table]:
    """The decisions about more labels than memory holds (DECISION_SCHEMA), in their order.

    The labels are read twice: what decides, then their names.

    Raises:
        UserError: the configured score was not measured on these labels.
    """
    columns, scores_B, empty_B = _deciding(read, cfg)
    finite_B = np.isfinite(scores_B)
    accepted_B = cfg.rule.accepted(columns, scores_B, ~empty_B & finite_B)
    names = pa.array(["accepted", "empty_action", "non_finite_score", cfg.rule.reason])
    reason_B = np.select([empty_B, ~finite_B, accepted_B], [1, 2, 0], default=3)
    start = 0
    for rows in read(["label_id", "pair_id"]):
        here = slice(start, start + rows.num_rows)
        decided = [accepted_B[here], scores_B[here], names.take(pa.array(reason_B[here]))]
        yield pa.table([*rows.columns, *map(pa.array, decided)], names=DECISION_SCHEMA.names).cast(
            DECISION_SCHEMA
        )
        start = here.stop


def _deciding(read: ReadLabels, cfg: FilterConfig) -> tuple[pa.Table, Scores, Mask]:
    """The columns that the rule reads, the scores, and which labels say nothing."""
    scores, empty = [np.zeros(0, np.float32)], [np.zeros(0, bool)]
    parts: dict[str, list[pa.DictionaryArray]] = {name: [] for name in cfg.rule.columns}
    measured = False
    for rows in read(list(dict.fromkeys(["action", "scores", *parts]))):
        sentence = pc.utf8_trim_whitespace(rows["action"])
        empty.append(pc.equal(sentence, "").to_numpy())
        scores.append(score_column(rows, cfg.score).astype(np.float32))
        measured = measured or cfg.score in score_names(rows)
        for name, chunks in parts.items():
            chunks += rows[name].dictionary_encode().chunks
    empty_B = np.concatenate(empty)
    if not empty_B.all() and not measured:
        raise UserError(
            f"filter.score={cfg.score} was not measured on these labels; "
            "label again with this setting in a new run_dir"
        )
    columns = {
        name: pa.chunked_array(chunks, pa.dictionary(pa.int32(), LABEL_SCHEMA.field(name).type))
        for name, chunks in parts.items()
    }
    return pa.table(columns).unify_dictionaries(), np.concatenate(scores), empty_B


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


class BalancedRule(FilterRule):
    """Accept the best ``fraction`` of every type of action, which is a sentence's first word.

    Types differ in how sure the models are of them: by one order, the types that a round still has
    to learn are left out, right labels and all.
    """

    kind: Literal["balanced"] = "balanced"
    fraction: float = Field(default=0.8, gt=0, le=1)
    reason: ClassVar[str] = "outside_fraction_of_type"
    columns: ClassVar[tuple[str, ...]] = ("action",)

    def accepted(self, labels: pa.Table, scores_B: Scores, eligible_B: Mask) -> Mask:
        """See `FilterRule.accepted`."""
        sentences = labels["action"].combine_chunks()
        verbs = [(sentence.split() or [""])[0] for sentence in sentences.dictionary.to_pylist()]
        type_B = np.unique(verbs, return_inverse=True)[1][sentences.indices.to_numpy()]
        best_first = _by_score(scores_B, eligible_B)
        num_accepted = (self.fraction * np.bincount(type_B) + 1e-9).astype(np.int64)
        accepted_B = np.zeros(len(scores_B), dtype=bool)
        chosen = _places(type_B[best_first]) < num_accepted[type_B[best_first]]
        accepted_B[best_first[chosen]] = True
        return accepted_B


class StratifiedTopKRule(FilterRule):
    """Round-robin over classes, best unused label of each, until ``k`` (paper, Algorithm 1)."""

    kind: Literal["stratified_top_k"] = "stratified_top_k"
    k: int = Field(default=7000, ge=1)
    """Labels to accept of every folder of the pool (the paper: 7,000 of each source)."""
    reason: ClassVar[str] = "outside_top_k"
    columns: ClassVar[tuple[str, ...]] = ("clip_class",)

    def accepted(self, labels: pa.Table, scores_B: Scores, eligible_B: Mask) -> Mask:
        """See `FilterRule.accepted`."""
        accepted_B = np.zeros(len(scores_B), dtype=bool)
        classes = labels["clip_class"].combine_chunks()
        class_B = classes.indices.to_numpy()
        best_first = _by_score(scores_B, eligible_B)
        for members_C in _by_folder(classes.dictionary.to_pylist()):
            of_folder = best_first[members_C[class_B[best_first]]]
            accepted_B |= _best(_round_robin(of_folder, class_B), self.k, len(scores_B))
        return accepted_B


RULES: dict[str, type[FilterRule]] = {
    "threshold": ThresholdRule,
    "top_fraction": TopFractionRule,
    "balanced": BalancedRule,
    "stratified_top_k": StratifiedTopKRule,
}
"""Rules by name: ``kind`` of ``filter.rule`` to the class of its other keys."""


def _by_folder(classes: Sequence[str]) -> Iterator[Mask]:
    """Masks of the classes [C] of every folder of the pool.

    The paper accepts K of each source. A class is ``folder/class`` in a pool of several folders and
    has no slash in a pool of one.
    """
    folders = [name.partition("/")[0] if "/" in name else "" for name in classes]
    for folder in sorted(set(folders)):
        yield np.array([name == folder for name in folders])


def _by_score(scores: Scores, eligible: Mask) -> Rows:
    """Eligible rows, best first. Rows are in label_id order, which a stable sort keeps in ties."""
    order = np.argsort(-scores, kind="stable")
    return order[eligible[order]]


def _round_robin(best_first: Rows, class_B: NDArray[np.int32]) -> Rows:
    """One label of every class per pass, each the best unused one of its class.

    Within a pass the better label comes first, so a last, incomplete pass takes the best on offer
    (the paper's Algorithm 1 leaves this open).
    """
    return best_first[np.argsort(_places(class_B[best_first]), kind="stable")]


def _places(class_N: NDArray[np.int64] | NDArray[np.int32]) -> Rows:
    """How many of the same class come before each."""
    together = np.argsort(class_N, kind="stable")
    first = np.searchsorted(class_N[together], class_N[together])
    places = np.empty(len(together), dtype=np.int64)
    places[together] = np.arange(len(together)) - first
    return places


def _best(order: Rows, num_accepted: int, num_rows: int) -> Mask:
    accepted = np.zeros(num_rows, dtype=bool)
    accepted[order[:num_accepted]] = True
    return accepted
