"""The study's curves as PNG files, drawn from `Results` alone."""

from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from dynamics.evaluation.metrics import ORACLE
from dynamics.storage.files import write_bytes
from dynamics.studies.best_of_n_tables import COLUMNS, GREEDY
from dynamics.studies.results import Number, Results, Table

_COLOURS = ("#1f6f8b", "#d1495b", "#6a994e", "#7d5ba6", "#444444", "#c98a1b")
_SIZE = (6.4, 4.0)
_DPI = 110


def write_plots(results: Results, folder: Path) -> None:
    """Write the curves that the results have data for."""
    for name, table in results.tables.items():
        draw = _best_of if name.startswith("verification-") else _CURVES.get(name)
        if draw and (figure := draw(table)) is not None:
            write_bytes(folder / f"{name}.png", _png(figure))


def _ease(table: Table) -> Any:
    """Claim (a): both tasks against the number of labels."""
    rows = [row for row in table.rows if row.name.endswith(" labels")]
    if len(rows) < 2:
        return None
    sizes = [float(row.name.removesuffix(" labels").replace(",", "")) for row in rows]
    figure, axes = _axes("(a) accuracy against labelled pairs", "labelled pairs (log scale)")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [f"{size:,.0f}" for size in sizes])
    for column, colour in zip(
        ("IDM", "FDP, greedy", "FDP copies the input"), _COLOURS, strict=False
    ):
        if all(column in row.cells for row in rows):
            _line(axes, sizes, [row.cells[column] for row in rows], column, colour)
    return _finished(figure, axes)


def _rounds(table: Table) -> Any:
    """Claim (b): round by round, the controls as level lines."""
    rows = [row for row in table.rows if row.name.startswith("round ")]
    if len(rows) < 2:
        return None
    figure, axes = _axes("(b) held-out success by round", "round")
    places = [float(index) for index in range(len(rows))]
    axes.set_xticks(places)
    for column, colour in zip(("IDM", "FDP, greedy"), _COLOURS, strict=False):
        _line(axes, places, [row.cells[column] for row in rows], column, colour)
        for name, style in (("labelled set only, as many steps", ":"), ("true labels", "--")):
            if (level := table.cell(name, column)) is not None:
                axes.axhline(100 * level.value, color=colour, linestyle=style, linewidth=1.2)
                axes.annotate(
                    f"{column.partition(',')[0]}, {name}",
                    (places[-1], 100 * level.value),
                    textcoords="offset points",
                    xytext=(0, 3),
                    ha="right",
                    fontsize=7.5,
                    color=colour,
                )
    return _finished(figure, axes)


def _risk_coverage(table: Table) -> Any:
    """Claim (b): the error of the most trusted labels."""
    coverages = [float(row.name.removeprefix("best ").removesuffix(" %")) for row in table.rows]
    figure, axes = _axes("(b) labels, most trusted first", "% of round 1's labels accepted")
    axes.set_ylabel("% of them incorrect")
    for score, colour in zip(table.columns, cycle(_COLOURS), strict=False):
        values = [100 * (1 - row.cells[score].value) for row in table.rows]
        axes.plot(coverages, values, "o-", color=colour, label=score, ms=4)
    axes.legend(fontsize=8, frameon=False)
    axes.set_ylim(bottom=0)
    return figure


def _reliability(table: Table) -> Any:
    """Claim (b): correctness against confidence."""
    figure, axes = _axes("(b) reliability of round 1's labels", "confidence, %")
    axes.set_ylabel("% correct")
    axes.plot([0, 100], [0, 100], ":", color="#888888", linewidth=1, label="calibrated")
    scores = dict.fromkeys(row.name.partition(",")[0] for row in table.rows)
    for score, colour in zip(scores, _COLOURS, strict=False):
        rows = [row for row in table.rows if row.name.startswith(f"{score},")]
        points = [[100 * row.cells[name].value for row in rows] for name in table.columns]
        axes.plot(*points, "o-", color=colour, label=score, ms=4)
    return _finished(figure, axes)


def _best_of(table: Table) -> Any:
    """Claim (c): success against N for every verifier."""
    sizes = [float(row.name.removeprefix("N = ")) for row in table.rows]
    figure, axes = _axes(table.title, "N, candidates a scene (log scale)")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [f"{size:.0f}" for size in sizes])
    for column, colour in zip(COLUMNS.values(), _COLOURS, strict=False):
        _line(axes, sizes, [row.cells[column] for row in table.rows], column, colour)
    for column, style in ((ORACLE, "--"), (GREEDY, ":")):
        values = [100 * row.cells[column].value for row in table.rows]
        axes.plot(sizes, values, style, color="#444444", linewidth=1.2, label=column)
    return _finished(figure, axes)


_CURVES: dict[str, Callable[[Table], Any]] = {
    "ease": _ease,
    "rounds": _rounds,
    "risk-coverage": _risk_coverage,
    "reliability": _reliability,
}


def _axes(title: str, x_title: str) -> tuple[Any, Any]:
    # Not pyplot: it would keep every figure alive and choose a backend for the whole process.
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(x_title)
    axes.set_ylabel("% of held-out scenes")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.7)
    return figure, axes


def _line(
    axes: Any, places: Sequence[float], numbers: Sequence[Number], name: str, colour: str
) -> None:
    axes.plot(places, [100 * n.value for n in numbers], "o-", color=colour, label=name, ms=4)
    low, high = [100 * n.low for n in numbers], [100 * n.high for n in numbers]
    axes.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)


def _finished(figure: Any, axes: Any) -> Any:
    axes.set_ylim(0, 100)
    axes.legend(fontsize=8, frameon=False)
    return figure


def _png(figure: Any) -> bytes:
    import io

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
