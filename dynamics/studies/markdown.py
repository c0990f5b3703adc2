"""The study's JSON as Markdown; no number comes from anywhere else."""

from collections.abc import Sequence
from pathlib import Path

from dynamics.studies.results import Number, Results, Table


def to_markdown(results: Results, plots: Sequence[str]) -> str:
    """Text of ``docs/RESULTS.md``; ``plots`` are picture files relative to it."""
    seeds = ", ".join(map(str, results.seeds))
    parts = [
        "# Results",
        "Written by `dynamics study` from `study/results.json`; do not edit.",
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
    return "\n\n".join(part for part in parts if part) + "\n"


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
