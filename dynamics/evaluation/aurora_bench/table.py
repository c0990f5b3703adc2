"""The figures of an evaluation for the terminal."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dynamics.core.records import Estimate
from dynamics.evaluation.aurora_bench.dataset import SUBSETS
from dynamics.evaluation.aurora_bench.summary import MEAN, METRICS, BenchReport

_MISSING = "-"


def show(report: BenchReport, console: Console) -> None:
    """Print the table: whole, also into a pipe, but on a narrow terminal the mean column only."""
    found = {name for figures in report.metrics.values() for by in figures.values() for name in by}
    columns = [*SUBSETS, *sorted(found - {*SUBSETS, MEAN}), MEAN]
    table = bench_table(report, columns)
    width = console.measure(table, options=console.options.update(max_width=1000)).maximum
    if width <= console.width:
        console.print(table)
    elif not console.is_terminal:
        Console(file=console.file, width=width).print(table)
    else:
        console.print(bench_table(report, [MEAN]))
        console.print(f"a terminal of {width} columns shows the subsets, --json gives every figure")


def bench_table(report: BenchReport, columns: Sequence[str]) -> Table:
    """A row per metric and contestant; columns are subsets and `MEAN`."""
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    table.add_column("metric", no_wrap=True)
    table.add_column("of", no_wrap=True)
    for name in columns:
        table.add_column(escape(name), justify="right", no_wrap=True)
    group = None
    for name, by_contestant in report.metrics.items():
        metric = METRICS[name]
        if metric.group != group:
            group = metric.group
            table.add_section()
            table.add_row(f"[bold]{group}[/bold]")
        arrow = "↓" if metric.better == "lower" else "↑"
        for number, (who, figures) in enumerate(by_contestant.items()):
            cells = (_cell(figures.get(column), metric.digits) for column in columns)
            table.add_row("" if number else f"{metric.title} {arrow}", who, *cells)
    return table


def notes(report: BenchReport) -> list[str]:
    """Remarks below the table, one line each."""
    pairs = ", ".join(f"{subset} {count}" for subset, count in report.num_items.items())
    lines = [
        "below each figure: 95 % interval over items; mean: over subsets; pictures are compared at "
        "the target's own size",
        f"{report.model}: {report.decode}; pairs: {pairs}",
        "BERTScore is not rescaled by a baseline",
    ]
    lines += [f"not used: {count} rows, {reason}" for reason, count in report.rejects.items()]
    lines += [
        f"instructions {name.replace('_', ' ')}: {count}"
        for name, count in report.instructions.items()
        if count
    ]
    if report.judge:
        lines.append(
            "judge: " + ", ".join(f"{name} {value}" for name, value in report.judge.items())
        )
    return [*lines, *report.left_out]


def _cell(estimate: Estimate | None, digits: int) -> str:
    if estimate is None:
        return _MISSING
    digits = 2 if estimate.high > 1 else digits
    low, high = (f"{bound:.{digits}f}" for bound in (estimate.low, estimate.high))
    return f"{estimate.value:.{digits}f}\n[dim]{low}-{high}[/dim]"
