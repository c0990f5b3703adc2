"""A round held against its controls (`evaluation.controls`) on the same held-out pairs."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from dynamics.core.records import Estimate
from dynamics.core.seeds import derive_seed
from dynamics.evaluation.intervals import Floats, bootstrap_statistic
from dynamics.evaluation.metrics import METRIC_OF_COLUMN, summarise

COMPARED = {"fdp_greedy_success": "code_changed_accuracy", "idm_correct": "idm_exact"}
"""Columns of the held-out results that are compared, to what stands for them on real video."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlReport:
    """A round against its controls, on the same held-out pairs."""

    round_id: int
    steps: int
    """Training steps of each control's FDP."""
    num_pool: int
    """Pool pairs that the ``true_labels`` arm trained on; 0 without that arm."""
    arms: dict[str, dict[str, Estimate]]
    """Metrics of ``labelled_only``, ``round`` and, where the pool's truth is known,
    ``true_labels``, without best of N."""
    gain: dict[str, Estimate]
    """Per metric, round minus ``labelled_only``, paired over pairs."""
    gap_closed: dict[str, Estimate]
    """Per metric, (round - labelled_only) / (true_labels - labelled_only), over pairs. Metrics
    on which true labels are no better than the labelled set alone are left out: no gap to close."""

    def to_json(self) -> dict[str, Any]:
        """A plain dict for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, payload: dict[str, Any]) -> "ControlReport":
        """Inverse of `to_json`."""
        arms = {arm: _estimates(metrics) for arm, metrics in payload["arms"].items()}
        gains = {name: _estimates(payload[name]) for name in ("gain", "gap_closed")}
        return cls(**{**payload, "arms": arms, **gains})


def _estimates(payload: dict[str, Any]) -> dict[str, Estimate]:
    return {name: Estimate(**value) for name, value in payload.items()}


def compare(items: dict[str, pa.Table], round_id: int, steps: int, num_pool: int) -> ControlReport:
    """Metrics, gains and closed gaps of evaluation tables over the same pairs.

    Args:
        items: tables with `results_schema`, keyed ``labelled_only``, ``round`` and, where the
            pool's truth is known, ``true_labels``.
        round_id: number of the round.
        steps: training steps of the controls' FDPs.
        num_pool: pool pairs with a true label.
    """
    order: tuple[str, ...] = ("labelled_only", "round", "true_labels")
    tables = {arm: items[arm].sort_by("pair_id") for arm in order if arm in items}
    gain: dict[str, Estimate] = {}
    gap_closed: dict[str, Estimate] = {}
    for metric, seed, known_NK in _outcomes(list(tables.values())):
        gain[metric] = bootstrap_statistic(known_NK, _second_less_first, seed)
        if "true_labels" in tables:
            closed = bootstrap_statistic(known_NK, _gap_closed, seed)
            gap_closed |= {metric: closed} if np.isfinite(closed.value) else {}
    arms = {
        arm: {name: value for name, value in summarise(table).items() if "best_of" not in name}
        for arm, table in tables.items()
    }
    return ControlReport(
        round_id=round_id,
        steps=steps,
        num_pool=num_pool,
        arms=arms,
        gain=gain,
        gap_closed=gap_closed,
    )


def gains(before: pa.Table, after: pa.Table) -> dict[str, Estimate]:
    """How much more the second of two evaluations has, per metric, paired over the same pairs."""
    tables = [table.sort_by("pair_id") for table in (before, after)]
    return {
        metric: bootstrap_statistic(known_N2, _second_less_first, seed)
        for metric, seed, known_N2 in _outcomes(tables)
    }


def _outcomes(tables: list[pa.Table]) -> Iterator[tuple[str, int, list[tuple[float, ...]]]]:
    """Per compared metric: its name, the seed of its intervals, a row of K outcomes per pair."""
    pairs = [table["pair_id"].to_pylist() for table in tables]
    if any(one != pairs[0] for one in pairs):
        raise ValueError("one model was evaluated on other pairs than another")
    for exact, stand_in in COMPARED.items():
        column = exact if tables[-1][exact].null_count < len(pairs[0]) else stand_in
        outcomes = [table[column].to_pylist() for table in tables]
        known_NK = [row for row in zip(*outcomes, strict=True) if None not in row]
        yield METRIC_OF_COLUMN[column], derive_seed("bootstrap", "controls", column), known_NK


def _second_less_first(means_RK: Floats) -> Floats:
    return means_RK[:, 1] - means_RK[:, 0]


def _gap_closed(means_R3: Floats) -> Floats:
    """Columns labelled_only, round, true_labels; NaN where there is no gap to close."""
    labelled_R, round_R, true_R = means_R3.T
    with np.errstate(divide="ignore", invalid="ignore"):
        closed_R = (round_R - labelled_R) / (true_R - labelled_R)
        return np.where(true_R > labelled_R, closed_R, np.nan)
