"""Intervals: the spread of a mean over items under resampling (bootstrap), and Wilson's of a share.

They cover the choice of items only. The spread between training seeds is a separate, often larger,
uncertainty that one run cannot show.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dynamics.core.records import Estimate

Floats = NDArray[np.float64]


def bootstrap_mean(values: ArrayLike, *, seed: int, num_resamples: int = 2000) -> Estimate:
    """Mean of ``values`` [N] with its 95 % interval; see `mean_of_strata`."""
    return mean_of_strata([values], seed, num_resamples)


def mean_of_strata(strata: Sequence[ArrayLike], seed: int, num_resamples: int = 2000) -> Estimate:
    """Mean over strata (training seeds) of their means, with its 95 % interval.

    It is the percentile bootstrap's, which cannot see outcomes that never happened. So where truth
    values (bool) are all equal, a share of none or of all, it is Wilson's. Numbers that are all
    equal have an interval of width zero.

    Args:
        strata: one [N_s] array per stratum, one value per item.
        seed: of the resampling.
        num_resamples: number of resamples.

    Raises:
        ValueError: no value in a stratum, or a value that is not finite.
    """
    columns = [np.asarray(values).reshape(-1, 1) for values in strata]
    outcomes = np.concatenate(columns)
    if all(map(len, columns)) and outcomes.dtype == bool and len(np.unique(outcomes)) == 1:
        return wilson(int(outcomes.sum()), len(outcomes))
    return bootstrap_strata(columns, lambda means_RK: means_RK[:, 0], seed, num_resamples)


def bootstrap_statistic(
    values_NK: ArrayLike,
    statistic: Callable[[Floats], Floats],
    seed: int,
    num_resamples: int = 2000,
) -> Estimate:
    """A statistic of K column means, with an interval that keeps each item's K values together.

    Resampling whole rows is what makes a comparison of models on the same items a paired one.

    Args:
        values_NK: one row per item.
        statistic: maps means [R, K] to values [R]; rows are independent resamples.
        seed: of the resampling.
        num_resamples: R, the number of resamples.

    Raises:
        ValueError: no row, or a value that is not finite.
    """
    return bootstrap_strata([values_NK], statistic, seed, num_resamples)


def bootstrap_strata(
    strata: Sequence[ArrayLike],
    statistic: Callable[[Floats], Floats],
    seed: int,
    num_resamples: int = 2000,
) -> Estimate:
    """A statistic of K column means, each the mean over strata (training seeds) of its own mean.

    Items are resampled within their stratum, whole rows at a time, so that a comparison on the
    same items stays paired.

    Args:
        strata: one [N_s, K] array per stratum, one row per item.
        statistic: maps means [R, K] to values [R]; rows are independent resamples.
        seed: of the resampling.
        num_resamples: R, the number of resamples.

    Raises:
        ValueError: no row in a stratum, or a value that is not finite.
    """
    drawn: list[Floats] = []
    means: list[Floats] = []
    rng = np.random.default_rng(seed)
    num_items = 0
    for values_NK in strata:
        rows_NK = np.asarray(values_NK, dtype=np.float64)
        if len(rows_NK) == 0 or not np.isfinite(rows_NK).all():
            raise ValueError("a bootstrap interval needs at least one value, all of them finite")
        # Drawing how often each distinct row occurs is the same as drawing rows, and 0/1 outcomes
        # have few distinct rows, so 12,000 labels cost no more than 100.
        unique_UK, counts_U = np.unique(rows_NK, axis=0, return_counts=True)
        draws_RU = rng.multinomial(len(rows_NK), counts_U / len(rows_NK), size=num_resamples)
        drawn.append(draws_RU @ unique_UK / len(rows_NK))
        means.append(rows_NK.mean(axis=0))
        num_items += len(rows_NK)
    values_R = statistic(np.mean(drawn, axis=0))
    # Undefined resamples (a ratio whose denominator vanished) leave the interval to the others.
    defined = values_R[np.isfinite(values_R)]
    low, high = np.quantile(defined, [0.025, 0.975]) if len(defined) else (np.nan, np.nan)
    value = float(statistic(np.mean(means, axis=0)[None])[0])
    return Estimate(value=value, low=float(low), high=float(high), num_items=num_items)


def wilson(count: int, num: int, population: int | None = None) -> Estimate:
    """Share ``count`` / ``num`` with its 95 % interval (Wilson 1927), for items drawn at random.

    Of a ``population`` they are drawn without replacement: the interval of all of them has no
    width. Unlike the bootstrap's it has one where all outcomes are equal.
    """
    share = count / num
    left = 1.0 if population is None else (population - num) / max(1, population - 1)
    z2 = 1.96**2 * left
    middle = share + z2 / (2 * num)
    half = math.sqrt(z2 * (share * (1 - share) / num + z2 / (4 * num**2)))
    low, high = ((middle + side * half) / (1 + z2 / num) for side in (-1, 1))
    return Estimate(value=share, low=max(0.0, low), high=min(1.0, high), num_items=num)


def known(values: Any) -> NDArray[Any]:
    """The values that are not None, truth values as bool and numbers as float64."""
    found = np.array([value for value in values if value is not None])
    return found if found.dtype == bool else found.astype(np.float64)
