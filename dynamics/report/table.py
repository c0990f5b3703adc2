"""The closing table of a run, one row a round, for the terminal."""

from collections.abc import Mapping, Sequence

from rich.table import Table

from dynamics.evaluation.summary import best_of_sizes
from dynamics.records import Estimate, RoundReport

MISSING = "–"  # noqa: RUF001  an en dash stands for "does not apply" in tables


def round_table(reports: Sequence[RoundReport], seconds: Mapping[int, float]) -> Table:
    """Labelled, kept, accuracies, success and time per round; rates in percent with intervals.

    Args:
        reports: of the rounds, in order.
        seconds: wall time per round id, where known.
    """
    sizes = best_of_sizes(reports[-1].metrics) if reports else []
    largest = sizes[-1] if sizes else None
    table = Table(title="percent with 95 % bootstrap intervals over pairs", title_style="dim")
    for heading in ("round", "labelled", "kept", "label acc. all", "kept only", "FDP success"):
        table.add_column(heading, justify="right")
    for heading in ("copy rate", "IDM accuracy", f"best of {largest or 'N'}", "seconds"):
        table.add_column(heading, justify="right")
    for report in reports:
        rates = (
            "label/accuracy",
            "label/accuracy_kept",
            "eval/fdp_success",
            "eval/copy_rate",
            "eval/idm_accuracy",
            f"eval/best_of_{largest}",
        )
        table.add_row(
            str(report.round_id),
            f"{report.num_labelled:,}",
            f"{report.num_accepted:,}",
            *(percent(report.metrics.get(name)) for name in rates),
            f"{seconds[report.round_id]:.0f}" if report.round_id in seconds else MISSING,
        )
    return table


def percent(estimate: Estimate | None) -> str:
    """``71.3 [68.5, 74.0]``, or a dash where nothing was measured."""
    return MISSING if estimate is None else estimate.percent()
