"""The same held-out scenes in every round: what the models drew, next to what is true."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dynamics.report.grid import GridRow
from dynamics.report.pictures import Picture, picture


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """A generated frame."""

    heading: str
    """How it was chosen, e.g. ``greedy``."""
    round_id: int
    picture: Picture
    right: bool | None
    """Whether it shows the true next state; None where that is unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneView:
    """One held-out scene through all rounds."""

    action: str
    before: Picture
    drawings: Sequence[Drawing]
    """Greedy and, where it was evaluated, best of N; round by round."""
    truth: Picture


def scenes(rows_of_round: Mapping[int, Sequence[GridRow]], largest: int | None) -> list[SceneView]:
    """Scenes from the grids of all rounds (`report.grid.grid_rows`).

    Args:
        rows_of_round: per round id the rows of the same scenes in the same order.
        largest: the N of best of N; None when it was not evaluated.

    Raises:
        ValueError: the rounds have different numbers of scenes.
    """
    return [
        SceneView(
            action=rows[0].action,
            before=picture(rows[0].before),
            drawings=[
                drawing
                for round_id, row in zip(rows_of_round, rows, strict=True)
                for drawing in _drawings(round_id, row, largest)
            ],
            truth=picture(rows[0].truth),
        )
        for rows in zip(*rows_of_round.values(), strict=True)
    ]


def _drawings(round_id: int, row: GridRow, largest: int | None) -> list[Drawing]:
    shown = [("greedy", row.greedy, row.greedy_right)]
    if row.best is not None:
        shown.append((f"best of {largest}", row.best, row.best_right))
    return [
        Drawing(heading=heading, round_id=round_id, picture=picture(frame), right=right)
        for heading, frame, right in shown
    ]
