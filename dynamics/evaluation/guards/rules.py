"""The guards of a round: pure functions of its tables, each with a limit from the config.

A round that fails one is not promoted: no later round builds on it, and the generator goes on
serving the last promoted one. A guard without evidence says nothing: round 0 has no labels, and
nothing before it to drift from. `benchmarks/guards.py` measures how often each is wrong.

B held-out pairs, L codes a frame.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dynamics.core.config import GuardConfig, GuardName
from dynamics.core.domain import Domain, normalised_text
from dynamics.core.records import GuardResult
from dynamics.core.seeds import numpy_rng
from dynamics.evaluation.calibration import heldout_calibration, idm_answers
from dynamics.evaluation.guards.leakage import Leakage
from dynamics.evaluation.probes import beaten
from dynamics.storage.tables import codes_matrix

MIN_LABELS = 200
"""With fewer labels their mix and their entropy measure chance: their guards say nothing."""

MIN_PAIRS = 20
"""With fewer held-out pairs that answer a question its guard says nothing."""
FEW_LABELLED = 300
"""With a smaller labelled set more labels help before more steps do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardEvidence:
    """Tables of a round, and what else its guards read."""

    results: pa.Table
    """The round's held-out results (`evaluation.heldout.results_schema`)."""
    heldout: pa.Table
    """Held-out pairs, at least ``source_codes`` and ``target_codes``; rows as in ``results``."""
    labelled_actions: Sequence[str]
    """Action sentences of the labelled set."""
    leakage: Leakage
    domain: Domain
    labels: pa.Table | None = None
    """``action`` and ``accepted`` of every label; None in round 0."""
    first_results: pa.Table | None = None
    """Round 0's held-out results; None in round 0."""


Guard = Callable[[GuardEvidence, GuardConfig], GuardResult | None]


def evaluate_guards(evidence: GuardEvidence, limits: GuardConfig) -> tuple[GuardResult, ...]:
    """The results of all guards that have evidence, in the order of `GUARDS`."""
    results = (guard(evidence, limits) for guard in GUARDS.values())
    return tuple(result for result in results if result is not None)


def copy_rate(evidence: GuardEvidence, limits: GuardConfig) -> GuardResult | None:
    """Share of held-out pairs on which the FDP gives the source back.

    A frame is a copy when its codes are the source's, which needs no oracle, or when the oracle
    reads the source's state in it. Pairs whose true codes do not change are left out.
    """
    source_BL, target_BL = (
        codes_matrix(evidence.heldout, name) for name in ("source_codes", "target_codes")
    )
    same_B = (codes_matrix(evidence.results, "greedy_codes") == source_BL).all(axis=1)
    changes_B = (source_BL != target_BL).any(axis=1)
    seen_B = np.array([bool(copied) for copied in evidence.results["fdp_copy"].to_pylist()])
    if not changes_B.any():
        return None
    copied = (same_B | seen_B)[changes_B]
    value = float(copied.mean())
    return _result(
        "copy_rate",
        value,
        limits.max_copy_rate,
        value <= limits.max_copy_rate,
        f"the FDP gives its input back on {copied.sum():,} of {len(copied):,} held-out pairs",
        _teach(evidence),
    )


def action_sensitivity(evidence: GuardEvidence, limits: GuardConfig) -> GuardResult | None:
    """Share of other sentences that the true one beats at predicting the true frame; 0.5 is chance.

    Below the limit the FDP ignores its sentence: every action gets the same frame.
    """
    margins = [one for one in evidence.results["action_margins"].to_pylist() if one]
    if len(margins) < MIN_PAIRS:
        return None
    value = float(np.mean([beaten(one) for one in margins]))
    first = sum(min(one) > 0 for one in margins)
    return _result(
        "action_sensitivity",
        value,
        limits.min_action_sensitivity,
        value >= limits.min_action_sensitivity,
        "share of the labelled set's other sentences after which the FDP finds the true frame less "
        f"likely; chance is 0.5; its own sentence comes first for {first:,} of {len(margins):,} "
        "held-out pairs",
        _teach(evidence),
    )


def accepted_labels(evidence: GuardEvidence, limits: GuardConfig) -> GuardResult | None:
    """Labels that a round adds to the labelled set; without any, nothing was learnt from video."""
    if evidence.labels is None:
        return None
    accepted = int(evidence.labels["accepted"].to_numpy().sum())
    return _result(
        "accepted_labels",
        accepted,
        1,
        accepted >= 1,
        f"the filter accepted {accepted:,} of {evidence.labels.num_rows:,} labels",
        "more pairs from the pool (pool.keyframes) or another filter (filter.rule)",
    )


def overconfidence(evidence: GuardEvidence, limits: GuardConfig) -> GuardResult | None:
    """Calibration error of the IDM's confidence on held-out pairs.

    An IDM that knows few labels by heart is sure of wrong ones, too: its scores cannot filter.
    """
    if evidence.results.num_rows < MIN_PAIRS:
        return None
    value = heldout_calibration(evidence.results).value
    sure_B, correct = idm_answers(evidence.results)
    return _result(
        "overconfidence",
        value,
        limits.max_calibration_error,
        value <= limits.max_calibration_error,
        f"the IDM is {100 * sure_B.mean():.0f} % sure of its sentences for held-out pairs, and "
        f"{100 * np.mean(correct):.0f} % are correct",
        "more labelled pairs (dynamics check says how many) and train.validation_fraction",
    )


def caption_collapse(evidence: GuardEvidence, limits: GuardConfig) -> GuardResult | None:
    """Entropy of the labels' meanings over that of the labelled set; and the most common meaning.

    The entropy of a sample grows with its size, so equally many labels and sentences of the
    labelled set, drawn by a fixed random seed, are compared.
    """
    if evidence.labels is None or evidence.labels.num_rows < MIN_LABELS:
        return None
    sentences, said_B = _distinct(evidence.labels["action"])
    meanings = [_meaning(sentence, evidence.domain) for sentence in sentences]
    taught = [_meaning(action, evidence.domain) for action in evidence.labelled_actions]
    size = min(len(said_B), len(taught))
    known = _entropy([taught[row] for row in _sample(len(taught), size, "seed")])
    drawn = said_B[_sample(len(said_B), size, "labels")].tolist()
    # A labelled set with one meaning has nothing that labels could lose.
    ratio = _entropy([meanings[number] for number in drawn]) / known if known else 1.0
    common, count = max(_totals(meanings, said_B).items(), key=lambda entry: entry[1])
    share = count / len(said_B)
    return _result(
        "caption_collapse",
        ratio,
        limits.min_entropy_ratio,
        ratio >= limits.min_entropy_ratio and share <= limits.max_common_share,
        f"share of the entropy that the labelled set has; {100 * share:.1f} % of the labels "
        f"mean {common!r}, limit {100 * limits.max_common_share:g} %",
        "a stricter filter (filter.rule) or more labelled pairs (labelled.num_pairs)",
    )


def type_skew(evidence: GuardEvidence, limits: GuardConfig) -> GuardResult | None:
    """Total variation distance between the accepted labels' mix of action types and all labels'."""
    if evidence.labels is None or evidence.labels.num_rows < MIN_LABELS:
        return None
    accepted_B = evidence.labels["accepted"].to_numpy()
    if not accepted_B.any():
        return None
    sentences, said_B = _distinct(evidence.labels["action"])
    kinds = _kinds(sentences, evidence.domain)
    all_mix, accepted_mix = (_shares(_totals(kinds, rows)) for rows in (said_B, said_B[accepted_B]))
    change = {kind: accepted_mix.get(kind, 0.0) - share for kind, share in all_mix.items()}
    value = sum(abs(points) for points in change.values()) / 2
    most = max(change, key=lambda kind: abs(change[kind]))
    return _result(
        "type_skew",
        value,
        limits.max_type_skew,
        value <= limits.max_type_skew,
        f"distance of the accepted labels' action types from all labels'; most for {most!r}, "
        f"{100 * all_mix[most]:.1f} % of all and "
        f"{100 * accepted_mix.get(most, 0.0):.1f} % of the accepted",
        "another score or rule (filter.score, filter.rule)",
    )


def calibration_drift(evidence: GuardEvidence, limits: GuardConfig) -> GuardResult | None:
    """Growth since round 0 of the calibration error of the IDM's confidence, held-out pairs.

    The confidence in a sentence is the likelihood per token (`label_quality.CONFIDENCE`).
    """
    if evidence.first_results is None:
        return None
    now, first = (
        heldout_calibration(results).value for results in (evidence.results, evidence.first_results)
    )
    value = now - first
    return _result(
        "calibration_drift",
        value,
        limits.max_calibration_drift,
        value <= limits.max_calibration_drift,
        f"the IDM's confidence is off by {100 * now:.1f} points on held-out pairs, in round 0 by "
        f"{100 * first:.1f}",
        "a stricter filter (filter.rule) or more labelled pairs in a batch "
        "(train.labelled_fraction)",
    )


def leakage(evidence: GuardEvidence, limits: GuardConfig) -> GuardResult:
    """Held-out pairs that the pool holds, byte for byte or by their looks."""
    found = evidence.leakage
    # Equal bytes are never chance; equal looks may be.
    limit = 0 if found.by_digest else limits.max_leaked_pairs
    leaked = found.either if found.looks_tell else found.by_digest
    alike = (
        ""
        if found.looks_tell
        else f"; by chance {found.lookalikes:,} would, as often as they look like each other, so "
        "looks prove nothing here, and only bytes count"
    )
    return _result(
        "leakage",
        leaked,
        limit,
        leaked <= limit,
        f"of {found.num_heldout:,} held-out pairs {found.by_digest:,} are from a clip that is in "
        f"the pool, {found.by_hash:,} look like a pair of the pool{alike}",
        "take those clips out of the pool's folder",
    )


GUARDS: dict[GuardName, Guard] = {
    "copy_rate": copy_rate,
    "action_sensitivity": action_sensitivity,
    "accepted_labels": accepted_labels,
    "caption_collapse": caption_collapse,
    "type_skew": type_skew,
    "overconfidence": overconfidence,
    "calibration_drift": calibration_drift,
    "leakage": leakage,
}


def figure(value: float) -> str:
    """A guard's value or limit as people read it: three digits, counts whole."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _result(
    name: GuardName, value: float, limit: float, passed: bool, found: str, remedy: str
) -> GuardResult:
    message = f"{name} {figure(value)}, limit {figure(limit)}: {found}"
    if not passed:
        message += f"; accept it with --accept-guard {name}, or {remedy} in a new run_dir"
    return GuardResult(
        name=name, value=float(value), limit=float(limit), passed=passed, message=message
    )


def _teach(evidence: GuardEvidence) -> str:
    """What helps a model that has not learnt its task."""
    if len(evidence.labelled_actions) < FEW_LABELLED:
        return "more labelled pairs (dynamics check says how many)"
    return "train longer (train.first_steps, train.round_steps)"


def _meaning(sentence: str, domain: Domain) -> str:
    """One text per meaning; a sentence without one means its own words."""
    return domain.meaning(sentence) or normalised_text(sentence)


def _kinds(sentences: Sequence[str], domain: Domain) -> list[str]:
    """The actions' types; where the domain knows none of them, the first words."""
    kinds = [domain.kind(sentence) for sentence in sentences]
    if any(kinds):
        return kinds
    return [normalised_text(sentence).partition(" ")[0] for sentence in sentences]


def _distinct(actions: pa.ChunkedArray) -> tuple[list[str], NDArray[np.int32]]:
    """The distinct sentences as they come first, and which of them each label says, [B]."""
    if not pa.types.is_dictionary(actions.type):
        actions = actions.dictionary_encode()
    encoded = actions.unify_dictionaries().combine_chunks()
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy()


def _totals(names: Sequence[str], said_B: NDArray[np.int32]) -> dict[str, int]:
    """Labels by the name of their sentence."""
    totals: Counter[str] = Counter()
    for name, count in zip(names, np.bincount(said_B, minlength=len(names)), strict=True):
        totals[name] += int(count)
    return totals


def _sample(num_rows: int, size: int, name: str) -> NDArray[np.int64]:
    rng = numpy_rng("guards", "caption_collapse", name)
    return rng.choice(num_rows, size, replace=False)


def _entropy(meanings: Sequence[str]) -> float:
    """Shannon entropy of the empirical distribution, in nats."""
    shares = np.array(list(_shares(Counter(meanings)).values()))
    return float((shares * np.log(1 / shares)).sum())


def _shares(totals: Mapping[str, int]) -> dict[str, float]:
    """Share of each name."""
    return {name: count / sum(totals.values()) for name, count in totals.items()}
