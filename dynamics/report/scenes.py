"""The same held-out scenes in every round: generated frames next to the true ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dynamics.report.grid import GridRow
from dynamics.report.pictures import Picture, picture


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """A generated frame."""

    heading: str
    """Name of the decoding, e.g. ``greedy``."""
    round_id: int
    picture: Picture
    correct: bool | None
    """True when it shows the true next state; None where that is unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneView:
    """One held-out scene through all rounds."""

    action: str
    source: Picture
    drawings: Sequence[Drawing]
    """Greedy and, where it was evaluated, best of N; round by round."""
    target: Picture
    real: tuple[Picture, Picture] | None = None
    """The two frames before they were encoded, where they are kept."""


def scenes(
    rows_of_round: Mapping[int, Sequence[GridRow]],
    largest: int | None,
    real: Mapping[str, tuple[Picture, Picture]],
) -> list[SceneView]:
    """Scenes from the grids of all rounds (`report.grid.grid_rows`).

    Args:
        rows_of_round: per round id the rows of the same scenes in the same order.
        largest: the N of best of N; None when it was not evaluated.
        real: real source and target frame, by pair_id.

    Raises:
        ValueError: the rounds have different numbers of scenes.
    """
    return [
        SceneView(
            action=rows[0].action,
            source=picture(rows[0].source),
            drawings=[
                drawing
                for round_id, row in zip(rows_of_round, rows, strict=True)
                for drawing in _drawings(round_id, row, largest)
            ],
            target=picture(rows[0].target),
            real=real.get(rows[0].pair_id),
        )
        for rows in zip(*rows_of_round.values(), strict=True)
    ]


def _drawings(round_id: int, row: GridRow, largest: int | None) -> list[Drawing]:
    shown = [("greedy", row.greedy, row.greedy_correct)]
    if row.best is not None:
        shown.append((f"best of {largest}", row.best, row.best_correct))
    return [
        Drawing(heading=heading, round_id=round_id, picture=picture(frame), correct=correct)
        for heading, frame, correct in shown
    ]
