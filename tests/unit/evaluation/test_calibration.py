from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamics.evaluation.calibration import (
    area_under_risk_coverage,
    auroc,
    expected_calibration_error,
    reliability_curve,
    risk_coverage,
)

ALL: list[Callable[..., object]] = [
    expected_calibration_error,
    reliability_curve,
    risk_coverage,
    area_under_risk_coverage,
    auroc,
]
# Few distinct scores, so that ties are the rule.
LABELS = st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=30)


def _columns(labels: list[tuple[int, bool]]) -> tuple[np.ndarray, np.ndarray]:
    score, right = zip(*labels, strict=True)
    return np.array(score) / 5, np.array(right)


def _calibrated(num_labels: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Labels of which exactly their confidence, minus ``shift``, is right on average."""
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.3, 1.0, num_labels)
    return confidence, rng.random(num_labels) < confidence - shift


def test_bins_hold_equally_many_labels_and_ascend():
    bins = reliability_curve(*_calibrated(1000))
    assert [one.correct.num_items for one in bins] == [100] * 10
    assert [one.confidence for one in bins] == sorted(one.confidence for one in bins)


def test_intervals_of_a_calibrated_model_hold_its_confidence():
    bins = reliability_curve(*_calibrated(20_000))
    assert sum(one.correct.low <= one.confidence <= one.correct.high for one in bins) >= 8


def test_equal_confidences_share_a_bin():
    bins = reliability_curve([0.9] * 50 + [0.2] * 8, [1] * 58)
    assert [one.correct.num_items for one in bins] == [8, 50]


def test_fewer_labels_than_bins_are_one_a_bin():
    bins = reliability_curve([0.3, 0.1, 0.2], [1, 0, 1])
    assert [(one.confidence, one.correct.value) for one in bins] == [(0.1, 0), (0.2, 1), (0.3, 1)]


def test_calibration_error_by_hand():
    # Bins {0.5, 0.7} with half right and {0.9, 0.9} with all right: (|0.5 - 0.6| + |1 - 0.9|) / 2
    error = expected_calibration_error([0.5, 0.7, 0.9, 0.9], [1, 0, 1, 1], num_bins=2)
    assert error.value == pytest.approx(0.1)
    assert error.num_items == 4


def test_calibration_error_finds_a_constant_overconfidence():
    error = expected_calibration_error(*_calibrated(20_000, shift=0.2))
    assert error.low < 0.2 < error.high
    assert error.high - error.low < 0.03


def test_a_sure_model_has_no_error_when_all_is_right_and_1_when_all_is_wrong():
    right = expected_calibration_error(np.ones(5), np.ones(5))
    wrong = expected_calibration_error(np.ones(5), np.zeros(5))
    assert (right.value, right.low, right.high) == (0, 0, 0)
    assert (wrong.value, wrong.low, wrong.high) == (1, 1, 1)


def test_risk_of_the_best_labels_by_hand():
    coverage, risk = risk_coverage([3.0, 1.0, 2.0, 0.0], [1, 0, 1, 1])
    np.testing.assert_allclose(coverage, [0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(risk, [0, 0, 1 / 3, 1 / 4])
    assert area_under_risk_coverage([3.0, 1.0, 2.0, 0.0], [1, 0, 1, 1]) == pytest.approx(7 / 48)


def test_risk_in_ties_is_the_mean_over_all_orders():
    right = np.array([1, 0, 0, 1])
    risks = [np.cumsum(1 - right[[0, *order]]) / [1, 2, 3, 4] for order in permutations([1, 2, 3])]
    _, risk = risk_coverage([2, 1, 1, 1], right)
    np.testing.assert_allclose(risk, np.mean(risks, axis=0))


def test_a_constant_score_has_the_risk_of_all_labels():
    assert area_under_risk_coverage([7, 7, 7, 7], [1, 0, 0, 0]) == pytest.approx(0.75)
    assert auroc([7, 7, 7, 7], [1, 0, 0, 0]) == 0.5


@settings(max_examples=100, deadline=None)
@given(LABELS)
def test_auroc_is_the_share_of_pairs_in_the_right_order(labels: list[tuple[int, bool]]):
    score, right = _columns(labels)
    if right.all() or not right.any():
        with pytest.raises(ValueError, match="correct and wrong"):
            auroc(score, right)
        return
    above, below = score[right][:, None], score[~right][None]
    assert auroc(score, right) == pytest.approx(np.mean((above > below) + (above == below) / 2))


@settings(max_examples=50, deadline=None)
@given(LABELS, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(labels: list[tuple[int, bool]], random):
    shuffled = random.sample(labels, len(labels))
    here, there = _columns(labels), _columns(shuffled)
    np.testing.assert_allclose(risk_coverage(*here)[1], risk_coverage(*there)[1])
    assert expected_calibration_error(*here).value == pytest.approx(
        expected_calibration_error(*there).value
    )
    sizes = [[one.correct.num_items for one in reliability_curve(*both)] for both in (here, there)]
    assert sizes[0] == sizes[1]


@settings(max_examples=50, deadline=None)
@given(LABELS)
def test_the_last_risk_is_the_error_rate_and_bins_hold_every_label(labels: list[tuple[int, bool]]):
    score, right = _columns(labels)
    assert risk_coverage(score, right)[1][-1] == pytest.approx(1 - right.mean())
    assert sum(one.correct.num_items for one in reliability_curve(score, right)) == len(labels)


@pytest.mark.parametrize("measure", ALL)
@pytest.mark.parametrize(
    ("score", "right", "problem"),
    [
        ([], [], "at least one label"),
        ([0.5, float("nan")], [0, 1], "finite"),
        ([0.5, 0.6], [0, float("nan")], "0 or 1"),
        ([0.5, 0.6], [0], "one outcome per label"),
        ([[0.5, 0.6]], [[0, 1]], "one outcome per label"),
    ],
)
def test_what_cannot_be_measured_is_refused(measure, score, right, problem):
    with pytest.raises(ValueError, match=problem):
        measure(score, right)


@pytest.mark.parametrize("measure", [expected_calibration_error, reliability_curve])
def test_a_confidence_is_a_probability(measure):
    with pytest.raises(ValueError, match=r"within 0 \.\. 1"):
        measure([-0.1, 0.5], [0, 1])
    with pytest.raises(ValueError, match="num_bins"):
        measure([0.1, 0.5], [0, 1], num_bins=0)
