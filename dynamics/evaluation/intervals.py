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
    """Mean of ``values`` [N] with its 95 % percentile bootstrap interval.

    Equal values (all correct, say) give an interval of width zero: the bootstrap cannot see
    outcomes that never happened.

    Raises:
        ValueError: no value, or a value that is not finite.
    """
    column = np.asarray(values, dtype=np.float64).reshape(-1, 1)
    return bootstrap_statistic(column, lambda means_RK: means_RK[:, 0], seed, num_resamples)


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


def wilson(count: int, num: int, population: int) -> Estimate:
    """Share ``count`` / ``num`` with its 95 % interval (Wilson 1927), for items drawn at random.

    The items are drawn without replacement from ``population``: the interval of all of them has
    no width. Unlike the bootstrap's it has one where all outcomes are equal.
    """
    share = count / num
    z2 = 1.96**2 * (population - num) / max(1, population - 1)
    middle = share + z2 / (2 * num)
    half = math.sqrt(z2 * (share * (1 - share) / num + z2 / (4 * num**2)))
    low, high = ((middle + side * half) / (1 + z2 / num) for side in (-1, 1))
    return Estimate(value=share, low=max(0.0, low), high=min(1.0, high), num_items=num)


def known(values: Any) -> Floats:
    """The values that are not None, as float64; for Arrow columns turned into lists."""
    return np.array([value for value in values if value is not None], dtype=np.float64)
