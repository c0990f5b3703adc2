"""How good pseudo-labels are, measured against the truth."""

import numpy as np
import pyarrow as pa

from dynamics.core.domain import Domain
from dynamics.core.records import Estimate
from dynamics.evaluation.intervals import known
from dynamics.evaluation.metrics import estimate_of
from dynamics.storage.ledger import is_accepted


def label_accuracy(
    labels: pa.Table, decisions: pa.Table, truth: pa.Table | None, domain: Domain
) -> dict[str, Estimate]:
    """Quality of a round's pseudo-labels, before and after the filter.

    ``label/kept_fraction`` always; with the truth also ``label/accuracy`` over all labels and
    ``label/accuracy_kept`` over the accepted ones. A label is right when carrying it out on the
    true source state gives the true target state. Pairs that the truth leaves out are not counted.

    Args:
        labels: LABEL_SCHEMA.
        decisions: DECISION_SCHEMA, one row per label in any order.
        truth: TRUTH_SCHEMA, or None for real video.
        domain: knows what an action leads to.
    """
    kept = is_accepted(labels, decisions)
    columns = {"label/kept_fraction": kept.astype(np.float64)}
    if truth is not None:
        right = right_labels(labels, truth, domain)
        columns["label/accuracy"] = known(right)
        columns["label/accuracy_kept"] = known(np.array(right, dtype=object)[kept])
    return {name: estimate_of(name, values) for name, values in columns.items() if len(values)}


def right_labels(labels: pa.Table, truth: pa.Table, domain: Domain) -> list[bool | None]:
    """Per label (LABEL_SCHEMA), whether its action has the true effect; None without truth."""
    names = ("pair_id", "source_state", "target_state")
    states = {
        pair: (source, target)
        for pair, source, target in zip(*(truth[name].to_pylist() for name in names), strict=True)
    }
    verdicts: list[bool | None] = []
    for pair, action in zip(
        labels["pair_id"].to_pylist(), labels["action"].to_pylist(), strict=True
    ):
        state = states.get(pair)
        verdicts.append(None if state is None else domain.outcome(action, state[0]) == state[1])
    return verdicts
