import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamics.evaluation.intervals import (
    bootstrap_mean,
    bootstrap_statistic,
    known,
    mean_of_strata,
    wilson,
)


def test_interval_agrees_with_the_normal_approximation():
    values = np.random.default_rng(0).random(1000) < 0.7
    estimate = bootstrap_mean(values, seed=1)
    half_width = 1.96 * np.sqrt(values.mean() * (1 - values.mean()) / 1000)
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.low == pytest.approx(values.mean() - half_width, abs=0.004)
    assert estimate.high == pytest.approx(values.mean() + half_width, abs=0.004)
    assert estimate.num_items == 1000


def test_interval_equals_resampling_row_by_row():
    values = np.random.default_rng(3).normal(size=40)
    picks = np.random.default_rng(4).integers(0, 40, size=(20_000, 40))
    low, high = np.quantile(values[picks].mean(axis=1), [0.025, 0.975])
    estimate = bootstrap_mean(values, seed=5, num_resamples=20_000)
    assert estimate.low == pytest.approx(low, abs=0.02)
    assert estimate.high == pytest.approx(high, abs=0.02)


def test_interval_covers_the_true_rate_about_95_percent_of_the_time():
    rng = np.random.default_rng(6)
    estimates = [bootstrap_mean(rng.random(200) < 0.3, seed=n) for n in range(300)]
    covered = np.mean([one.low <= 0.3 <= one.high for one in estimates])
    assert 0.90 <= covered <= 0.98


def test_equal_seeds_give_equal_intervals():
    values = [0, 1, 1, 0, 1]
    assert bootstrap_mean(values, seed=7) == bootstrap_mean(values, seed=7)


def test_order_of_items_does_not_matter():
    assert bootstrap_mean([0, 0, 1, 1, 1], seed=8) == bootstrap_mean([1, 0, 1, 0, 1], seed=8)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_interval_holds_the_mean_and_stays_within_the_values(outcomes: list[bool]):
    estimate = bootstrap_mean(outcomes, seed=0)
    assert 0 <= estimate.low <= estimate.value + 1e-12
    assert estimate.value - 1e-12 <= estimate.high <= 1


@pytest.mark.parametrize("right", [False, True])
def test_a_share_of_none_or_all_has_wilsons_interval_and_other_equal_values_none(right: bool):
    estimate = bootstrap_mean(known([right, None, right, right]), seed=0)
    assert estimate == wilson(3 * right, 3)
    # 1 / (1 + n / 1.96^2), Wilson (1927)
    assert estimate.high - estimate.low == pytest.approx(1 / (1 + 3 / 1.96**2))
    assert mean_of_strata([[right] * 3, [right] * 7], seed=0) == wilson(10 * right, 10)
    measured = bootstrap_mean(known([1.0, 1.0]), seed=0)
    assert (measured.low, measured.high) == (1.0, 1.0)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")]])
def test_nothing_or_not_finite_is_refused(values: list[float]):
    with pytest.raises(ValueError, match="finite"):
        bootstrap_mean(values, seed=0)


def test_pairing_narrows_the_interval_of_a_difference():
    rng = np.random.default_rng(9)
    before = rng.random(500) < 0.5
    after = before | (rng.random(500) < 0.1)

    def difference(means_R2: np.ndarray) -> np.ndarray:
        return means_R2[:, 1] - means_R2[:, 0]

    paired = bootstrap_statistic(np.stack([before, after], axis=1), difference, seed=0)
    shuffled = np.stack([before, rng.permutation(after)], axis=1)
    unpaired = bootstrap_statistic(shuffled, difference, seed=0)
    assert paired.value == pytest.approx(unpaired.value)
    assert paired.high - paired.low < 0.6 * (unpaired.high - unpaired.low)
