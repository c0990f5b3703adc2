"""The study's JSON as Markdown; no number comes from anywhere else."""

from collections.abc import Sequence
from pathlib import Path

from dynamics.studies.results import NO_TRUTH, Number, Results, Row, Table


def to_markdown(results: Results, plots: Sequence[str], others: Sequence[Results] = ()) -> str:
    """Text of ``docs/RESULTS.md``.

    Args:
        results: those of the first world.
        plots: its picture files, relative to the page.
        others: those of other worlds, a row each.
    """
    seeds = ", ".join(map(str, results.seeds))
    parts = [
        "# Results",
        "Written by `dynamics study` from `study/`; do not edit.",
        f"{results.date}, seeds {seeds}, config `{results.config_digest[:12]}`. Percent, mean over "
        "seeds [95 % bootstrap interval over held-out scenes], then each seed. Every seed films "
        "its own videos; no setting was chosen on its scenes.",
    ]
    if results.checks:
        parts += ["## What was asked", _checks(results)]
    drawn = {Path(plot).stem: f"![{Path(plot).stem}]({plot})" for plot in plots}
    # By title: (a), (b), (c), the rest. JSON keeps no order.
    for name, table in sorted(results.tables.items(), key=lambda item: _place(item[1])):
        parts += [f"## {table.title}", table.note, drawn.get(name, "")]
        parts += [_markdown_table(table)] if table.printed else []
    if others:
        parts += ["## The claims on worlds that others wrote", *_worlds(others)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _worlds(others: Sequence[Results]) -> list[str]:
    """What was measured when, and a row a world."""
    rows, when = [], []
    for results in others:
        labels = f"{results.settings['config']['labelled']['num_pairs']:,} labels"
        last = f"round {results.settings['config']['rounds']}"
        ease, rounds = results.tables["ease"], results.tables["rounds"]
        cells = {
            f"(a) {name}": ease.cell(labels, name) for name in ("IDM", "FDP, greedy", "IDM - FDP")
        }
        cells["(b) labelled set only"] = rounds.cell(_LABELLED_ONLY, "FDP, greedy")
        cells["(b) last round"] = rounds.cell(last, "FDP, greedy")
        cells["(b) true labels"] = rounds.cell("true labels", "FDP, greedy")
        cells["(b) share of the gap closed"] = rounds.cell(last, "share of the gap closed")
        known = {name: number for name, number in cells.items() if number is not None}
        unread = "" if "(b) true labels" in known else " \\*"
        rows.append(Row(name=f"{results.world}, {labels}{unread}", cells=known))
        seeds = ", ".join(map(str, results.seeds))
        when.append(f"{results.world}: {results.date}, seeds {seeds}")
        columns = tuple(cells)
    return [
        "; ".join(when) + ".",
        _markdown_table(Table(title="", note="", columns=columns, rows=tuple(rows))),
        *([f"\\* {NO_TRUTH}"] if any(row.name.endswith("*") for row in rows) else []),
    ]


_LABELLED_ONLY = "labelled set only, as many steps"


def _place(table: Table) -> tuple[bool, str]:
    return not table.title.startswith("("), table.title


def shown(number: Number | None) -> str:
    """Number as text: ``71.6 [69.9, 73.3] (70.1 / 72.4 / 72.3)``."""
    if number is None:
        return ""
    text = f"{_percent(number.value)} [{_percent(number.low)}, {_percent(number.high)}]"
    if len(number.seeds) > 1:
        text += f" ({' / '.join(map(_percent, number.seeds))})"
    return text


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _checks(results: Results) -> str:
    lines = ["| claim | asked | measured | holds |", "| --- | --- | --- | --- |"]
    for check in results.checks:
        verdict = "yes" if check.holds else "**no**"
        lines.append(f"| {check.claim} | {check.asked} | {check.measured} | {verdict} |")
    return "\n".join(lines)


def _markdown_table(table: Table) -> str:
    lines = [
        "| | " + " | ".join(table.columns) + " |",
        "| --- " * (1 + len(table.columns)) + "|",
    ]
    lines += [
        f"| {row.name} | " + " | ".join(shown(row.cells.get(name)) for name in table.columns) + " |"
        for row in table.rows
    ]
    return "\n".join(lines)
