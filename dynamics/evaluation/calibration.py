"""Calibration of labels' confidence, and quality of their ranking by a score.

N labels: ``confidence_N`` within 0 .. 1, ``score_N`` any finite numbers where higher is more
trusted, ``correct_N`` 0 or 1. Equal values are never told apart: no result depends on the order of
the rows.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from dynamics.core.records import Estimate, ScoreScale
from dynamics.core.seeds import derive_seed
from dynamics.evaluation.intervals import Floats, bootstrap_mean, bootstrap_statistic

_DECIMALS = 3
"""Decimals of a confidence in the interval of the calibration error: few distinct rows are fast
to resample, and the interval moves by less than its last printed digit."""


_PAIRS_A_BIN = 25
"""Fewest held-out pairs in a bin of the calibration error: with fewer it measures noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReliabilityBin:
    """Labels of similar confidence."""

    confidence: float
    """Mean over the bin."""
    correct: Estimate
    """Share that is correct; its ``num_items`` is the size of the bin."""


def reliability_curve(
    confidence_N: ArrayLike, correct_N: ArrayLike, num_bins: int = 10
) -> list[ReliabilityBin]:
    """Bins of equally many labels, by ascending confidence; calibrated = both means are equal.

    A bin takes in all labels of its highest confidence: with ties, bins are larger and fewer.

    Raises:
        ValueError: no label, lengths that differ, a confidence outside 0 .. 1, an outcome other
            than 0 and 1, or no bin.
    """
    confidence, correct = _confidences(confidence_N, correct_N)
    return [
        ReliabilityBin(
            confidence=float(confidence[rows].mean()),
            correct=bootstrap_mean(
                correct[rows] == 1, seed=derive_seed("bootstrap", "reliability", number)
            ),
        )
        for number, rows in enumerate(_equal_count_bins(confidence, num_bins))
    ]


def expected_calibration_error(
    confidence_N: ArrayLike, correct_N: ArrayLike, num_bins: int = 10
) -> Estimate:
    """ECE = sum over bins of ``n_b / N * |share correct in b - mean confidence in b|``.

    The bins are those of `reliability_curve` (Guo et al., arXiv 1706.04599, have bins of equal
    width; of equal count, none is nearly empty). The interval resamples labels with the bins fixed.
    A sum of absolute values only grows with noise, so near 0 the interval lies above the value.

    Raises:
        ValueError: as `reliability_curve`.
    """
    confidence, correct = _confidences(confidence_N, correct_N)
    bins = _equal_count_bins(confidence, num_bins)
    gaps_NB = np.zeros((len(correct), len(bins)))
    for number, rows in enumerate(bins):
        gaps_NB[rows, number] = correct[rows] - np.round(confidence[rows], _DECIMALS)
    estimate = bootstrap_statistic(
        gaps_NB, lambda means_RB: np.abs(means_RB).sum(axis=1), derive_seed("bootstrap", "ece")
    )
    total = sum(abs(float((correct[rows] - confidence[rows]).sum())) for rows in bins)
    exact = total / len(correct)
    return Estimate(value=exact, low=estimate.low, high=estimate.high, num_items=len(correct))


def confidence(score_N: Floats, scale: ScoreScale = "log_probability") -> Floats:
    """A score as the probability that its label is correct, float64 [N]; NaN stays NaN.

    ``scale`` is that of the score's entry in SCORES; its default is that of
    `label_quality.CONFIDENCE`.
    """
    return np.clip(np.exp(score_N) if scale == "log_probability" else score_N, 0, 1)


def idm_answers(results: pa.Table) -> tuple[Floats, list[bool]]:
    """Confidence [B] of the IDM in its sentences for the held-out pairs, and which are correct."""
    score_B = results["idm_mean_logprob"].to_numpy().astype(np.float64)
    exact, by_state = (results[name].to_pylist() for name in ("idm_exact", "idm_correct"))
    # Without a known state the same action is the best that can be asked for.
    correct = [a if b is None else b for a, b in zip(exact, by_state, strict=True)]
    return confidence(score_B), correct


def heldout_calibration(results: pa.Table) -> Estimate:
    """Calibration error of the IDM's confidence on the held-out pairs (at least one)."""
    sure_B, correct = idm_answers(results)
    num_bins = max(1, min(10, len(correct) // _PAIRS_A_BIN))
    return expected_calibration_error(sure_B, correct, num_bins)


def risk_coverage(score_N: ArrayLike, correct_N: ArrayLike) -> tuple[Floats, Floats]:
    """Error rate of the k labels of the highest score, for every k.

    Returns ``coverage`` [N], k / N ascending to 1, and ``risk`` [N], the share of the k that is
    wrong. Where the k cut through equal scores it is the mean over all ways to choose among them.

    Raises:
        ValueError: no label, lengths that differ, a score that is not finite, or an outcome other
            than 0 and 1.
    """
    score, correct = _scores(score_N, correct_N)
    _, group_N, size_G = np.unique(-score, return_inverse=True, return_counts=True)
    wrong_G = np.bincount(group_N, weights=1 - correct) / size_G
    rank_N = np.arange(1, len(score) + 1)
    return rank_N / len(score), np.cumsum(np.repeat(wrong_G, size_G)) / rank_N


def area_under_risk_coverage(score_N: ArrayLike, correct_N: ArrayLike) -> float:
    """AURC: the mean risk over all coverages k / N (Geifman et al., arXiv 1805.08206).

    The error rate of all labels is what a score without information gets; less is better.

    Raises:
        ValueError: as `risk_coverage`.
    """
    return float(risk_coverage(score_N, correct_N)[1].mean())


def auroc(score_N: ArrayLike, correct_N: ArrayLike) -> float:
    """P(score of a correct label > score of a wrong one) + P(equal) / 2; 0.5 is no information.

    The Mann-Whitney statistic: with mean ranks in ties,
    ``(sum of the correct ones' ranks - n_r (n_r + 1) / 2) / (n_r * n_w)``.

    Raises:
        ValueError: as `risk_coverage`, or all labels are correct, or all are wrong.
    """
    score, correct = _scores(score_N, correct_N)
    num_correct = correct.sum()
    num_wrong = len(correct) - num_correct
    if not num_correct or not num_wrong:
        raise ValueError(f"AUROC needs correct and wrong labels; all {len(correct)} are the same")
    _, group_N, size_G = np.unique(score, return_inverse=True, return_counts=True)
    rank_G = np.cumsum(size_G) - (size_G - 1) / 2
    surplus = rank_G[group_N] @ correct - num_correct * (num_correct + 1) / 2
    return float(surplus / (num_correct * num_wrong))


def _equal_count_bins(confidence: Floats, num_bins: int) -> list[NDArray[np.intp]]:
    """Rows of every bin, by ascending confidence; no bin is empty, none splits equal values."""
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, not {num_bins}")
    order = np.argsort(confidence, kind="stable")
    ascending = confidence[order]
    ends = np.ceil(np.arange(1, num_bins + 1) * len(order) / num_bins).astype(np.intp)
    whole = np.unique(np.searchsorted(ascending, ascending[ends - 1], side="right"))
    return np.split(order, whole[:-1])


def _confidences(confidence_N: ArrayLike, correct_N: ArrayLike) -> tuple[Floats, Floats]:
    confidence, correct = _scores(confidence_N, correct_N)
    if confidence.min() < 0 or confidence.max() > 1:
        raise ValueError("confidences must lie within 0 .. 1")
    return confidence, correct


def _scores(score_N: ArrayLike, correct_N: ArrayLike) -> tuple[Floats, Floats]:
    score = np.asarray(score_N, dtype=np.float64)
    correct = np.asarray(correct_N, dtype=np.float64)
    if score.ndim != 1 or score.shape != correct.shape:
        raise ValueError(f"needs one outcome per label, got shapes {score.shape}, {correct.shape}")
    if not len(score):
        raise ValueError("needs at least one label")
    if not np.isfinite(score).all():
        raise ValueError("scores must be finite; leave out labels that have none")
    if not np.isin(correct, (0, 1)).all():
        raise ValueError("outcomes must be 0 or 1; leave out labels whose truth is unknown")
    return score, correct
