"""Tables of outcomes to the flat metric names that a round reports.

The names are the same every round, in `RoundReport`, in MLflow and on the page.
"""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dynamics.core.config import VerifierName
from dynamics.core.records import Estimate
from dynamics.core.seeds import derive_seed
from dynamics.evaluation.calibration import heldout_calibration
from dynamics.evaluation.intervals import Floats, bootstrap_mean, known
from dynamics.evaluation.probes import beaten
from dynamics.inference.verifiers import VERIFIERS, label_of

METRIC_OF_COLUMN = {
    "fdp_greedy_success": "eval/fdp_success",
    "fdp_sample_success": "eval/fdp_sample_success",
    "fdp_copy": "eval/copy_rate",
    "idm_correct": "eval/idm_accuracy",
    "idm_exact": "eval/idm_exact",
    "tokenizer_ceiling": "eval/tokenizer_ceiling",
    "majority_exact": "eval/majority_exact",
    "code_accuracy": "eval/code_accuracy",
    "code_copy_accuracy": "eval/code_accuracy_copy",
    "code_changed_accuracy": "eval/code_accuracy_changed",
    "code_ceiling": "eval/code_ceiling",
    "plan_regret": "eval/plan_regret",
    "random_plan_regret": "eval/plan_regret_random",
}
"""Column of the held-out results to metric; best-of columns keep their name under ``eval/``."""

ROLLOUT_STEPS = 6
"""Steps of the longest roll-out that is measured."""

HEADLINE_VERIFIER: VerifierName = "noisy_channel"
"""Verifier behind ``best_of_N``. Fixed, so that the serving options, which the run's digest leaves
out, change no measurement."""

ORACLE = "oracle"
"""Chooser of a correct candidate where there is one: the bound of every verifier."""

Measure = Callable[[pa.Table], NDArray[Any]]

_CURVE_COLUMN = re.compile(r"(?:\w+_)?best_of_\d+")


def best_of_prefix(chooser: str) -> str:
    """Prefix of the best-of-N columns and metrics of a verifier or the oracle."""
    return "best_of" if chooser == HEADLINE_VERIFIER else f"{chooser}_best_of"


def choosers() -> dict[str, str]:
    """Choosers among N candidates to their labels: headline, other verifiers, oracle."""
    first = dict.fromkeys((HEADLINE_VERIFIER, *VERIFIERS))
    return {name: label_of(name) for name in first} | {ORACLE: ORACLE}


def summarise(items: pa.Table) -> dict[str, Estimate]:
    """Metrics of held-out results; one whose column holds nothing is left out.

    Besides one metric per column and those of `MEASURES`: ``eval/best_of_greedy``, greedy success
    on the pairs of the best-of curve (the number to beat), ``eval/fdp_success_<kind>`` per action
    type, and ``eval/idm_ece``.
    """
    curves = [name for name in items.column_names if _CURVE_COLUMN.fullmatch(name)]
    columns = {metric: items[column] for column, metric in METRIC_OF_COLUMN.items()}
    columns |= {f"eval/{name}": items[name] for name in curves}
    if curves:
        compared = items.filter(pc.is_valid(items["best_codes"]))
        columns["eval/best_of_greedy"] = compared["fdp_greedy_success"]
    for kind in sorted(set(items["action_kind"].to_pylist()) - {""}):
        of_kind = items.filter(pc.equal(items["action_kind"], kind))
        columns[f"eval/fdp_success_{kind}"] = of_kind["fdp_greedy_success"]
    values = {name: known(column.to_pylist()) for name, column in columns.items()}
    values |= {name: measure(items) for name, measure in MEASURES.items()}
    found = {name: estimate_of(name, known_N) for name, known_N in values.items() if len(known_N)}
    return found | ({"eval/idm_ece": heldout_calibration(items)} if items.num_rows else {})


def action_sensitivity(items: pa.Table) -> Floats:
    """Share of the other sentences that the true one beats, per pair that was asked."""
    return np.array([beaten(one) for one in items["action_margins"].to_pylist() if one])


def action_first(items: pa.Table) -> NDArray[np.bool_]:
    """True where the true sentence beats all others that were asked."""
    margins = items["action_margins"].to_pylist()
    return np.array([min(one) > 0 for one in margins if one], bool)


def _over_pairs(column: str, of_pair: Callable[[list[bool]], float]) -> Measure:
    """A value of each counterfactual pair whose two frames were read."""
    return lambda items: known([of_pair(one) for one in _lists(items, column)])


def _at_step(column: str, step: int) -> Measure:
    """Success of the roll-outs of so many steps."""
    return lambda items: known([one[step - 1] for one in _lists(items, column)])


def _lists(items: pa.Table, column: str) -> list[list[bool]]:
    return [one for one in items[column].to_pylist() if one is not None and None not in one]


MEASURES: dict[str, Measure] = {
    "eval/action_sensitivity": action_sensitivity,
    "eval/action_first": action_first,
    "eval/counterfactual_both": _over_pairs("counterfactual_success", all),
    "eval/counterfactual_each": _over_pairs("counterfactual_success", np.mean),
    "eval/counterfactual_copies": _over_pairs("counterfactual_copy", np.mean),
    **{
        f"eval/{column}_{step}": _at_step(f"{column}_success", step)
        for column in ("rollout", "beam_rollout")
        for step in range(1, ROLLOUT_STEPS + 1)
    },
}
"""Metric to a function of the held-out results: a value for each pair that has one (yes or no:
bool)."""


def best_of_sizes(metrics: dict[str, Estimate]) -> list[int]:
    """The N that were evaluated, ascending."""
    names = (re.fullmatch(r"eval/best_of_(\d+)", name) for name in metrics)
    return sorted(int(match[1]) for match in names if match)


def estimate_of(name: str, values: np.ndarray) -> Estimate:
    """The mean of a metric's values with its interval; ``name`` seeds the bootstrap."""
    return bootstrap_mean(values, seed=derive_seed("bootstrap", name))
