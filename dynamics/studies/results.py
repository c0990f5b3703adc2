"""Results of the study as plain tables; Markdown and plots are made from their JSON alone.

Every number is a mean over seeds of a mean over that seed's held-out scenes, with a 95 % bootstrap
interval over scenes (resampled within their seed, the same scenes for all arms of a comparison)
and the seeds' own means beside it.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamics.core.records import Estimate
from dynamics.core.seeds import derive_seed
from dynamics.evaluation.intervals import Floats, bootstrap_strata, mean_of_strata

NO_TRUTH = (
    "Nothing is known of this world's rules: the FDP's figure is the share of the changed codes "
    "that it draws right, the IDM's the share of pairs that it names in the recorded sentence."
)
"""What the figures mean on real video."""

Strata = Sequence[NDArray[Any]]
"""One array per seed, its first axis the held-out scenes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """A measured value."""

    value: float
    low: float
    high: float
    seeds: tuple[float, ...]
    """The same statistic for every seed alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A line of a table; columns that were not measured for it are missing."""

    name: str
    cells: dict[str, Number]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Values in percent points / 100; ``note`` is a sentence or two in Markdown."""

    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    printed: bool = True
    """False: a curve's points, only drawn."""

    def cell(self, row: str, column: str) -> Number | None:
        """A value, None when it was not measured."""
        found = [one for one in self.rows if one.name == row]
        return found[0].cells.get(column) if found else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A bar that a claim was held against."""

    claim: str
    asked: str
    measured: str
    holds: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """The whole study."""

    date: str
    seeds: tuple[int, ...]
    config_digest: str
    settings: dict[str, Any]
    """Plan and config, which decide the numbers together with the seeds."""
    tables: dict[str, Table]
    checks: tuple[Check, ...] = field(default=())

    @property
    def world(self) -> str:
        """The name of the config that was studied."""
        return str(self.settings["config"]["name"])

    def to_json(self) -> dict[str, Any]:
        """A plain dict for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, payload: dict[str, Any]) -> "Results":
        """Inverse of `to_json`."""
        tables = {name: _table(table) for name, table in payload["tables"].items()}
        checks = tuple(Check(**check) for check in payload["checks"])
        seeds = tuple(payload["seeds"])
        return cls(**{**payload, "tables": tables, "checks": checks, "seeds": seeds})


def _table(payload: dict[str, Any]) -> Table:
    rows = tuple(
        Row(name=row["name"], cells={name: _number(cell) for name, cell in row["cells"].items()})
        for row in payload["rows"]
    )
    return Table(**{**payload, "rows": rows, "columns": tuple(payload["columns"])})


def _number(payload: dict[str, Any]) -> Number:
    return Number(**{**payload, "seeds": tuple(payload["seeds"])})


def mean(strata: Strata, name: str) -> Number:
    """Mean of one column."""
    estimate = mean_of_strata(strata, _seed(name))
    columns = [np.asarray(one, dtype=np.float64).reshape(-1, 1) for one in strata]
    return _number_of(estimate, tuple(float(one.mean(axis=0)[0]) for one in columns))


def difference(arm: Strata, reference: Strata, name: str) -> Number:
    """Arm minus reference, over the same scenes."""
    return statistic(_paired(arm, reference), lambda m_R2: m_R2[:, 0] - m_R2[:, 1], name)


def share_of_gap(arm: Strata, floor: Strata, ceiling: Strata, name: str) -> Number:
    """(arm - floor) / (ceiling - floor), over the same scenes."""

    def closed(m_R3: Floats) -> Floats:
        return np.asarray((m_R3[:, 0] - m_R3[:, 1]) / (m_R3[:, 2] - m_R3[:, 1]))

    return statistic(_paired(arm, floor, ceiling), closed, name)


def statistic(strata: Strata, of_means: Callable[[Floats], Floats], name: str) -> Number:
    """A statistic of column means; ``name`` seeds the resampling."""
    with np.errstate(divide="ignore", invalid="ignore"):
        estimate = bootstrap_strata(strata, of_means, _seed(name))
        alone = tuple(
            float(of_means(np.asarray(one, dtype=np.float64).mean(axis=0, keepdims=True))[0])
            for one in strata
        )
    return _number_of(estimate, alone)


def _seed(name: str) -> int:
    # "claims" is an earlier name of the study; it seeds the published intervals.
    return derive_seed("claims", name)


def _number_of(estimate: Estimate, seeds: tuple[float, ...]) -> Number:
    return Number(value=estimate.value, low=estimate.low, high=estimate.high, seeds=seeds)


def checked(
    claim: str, asked: str, number: Number | None, holds: Callable[[Number], bool]
) -> list[Check]:
    """The check of a number against a bar; none when it was not measured."""
    if number is None:
        return []
    measured = f"{100 * number.value:.1f} [{100 * number.low:.1f}, {100 * number.high:.1f}]"
    return [Check(claim=claim, asked=asked, measured=measured, holds=holds(number))]


def _paired(*arms: Strata) -> list[NDArray[np.float64]]:
    """Columns of the arms side by side, [N_s, K] a seed."""
    return [
        np.stack([np.asarray(column, dtype=np.float64) for column in columns], axis=1)
        for columns in zip(*arms, strict=True)
    ]
