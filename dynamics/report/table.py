"""Tables for the terminal: a run round by round, and a round between its controls."""

from collections.abc import Mapping, Sequence

from rich import box
from rich.table import Table

from dynamics.core.progress import duration
from dynamics.core.records import Estimate, RoundReport
from dynamics.evaluation.comparison import ControlReport
from dynamics.evaluation.metrics import best_of_sizes

MISSING = "-"
"""Cell of a value that does not apply or was not measured."""


def round_table(reports: Sequence[RoundReport], seconds: Mapping[int, float]) -> Table:
    """Labels, accepted ones, accuracies, success and time per round; fits 80 columns.

    Rates are percent, with the 95 % bootstrap interval over pairs below. A run without an oracle
    shows what needs none: the IDM beside the labelled set's commonest sentence, its calibration
    error, the FDP's share of the changed codes (copying has 0), and how often its own sentence
    beats others. Below a round's number
    stands "blocked" when a guard blocks it, "accepted" when a guard was overridden.

    Args:
        reports: of the rounds, in order.
        seconds: wall time per round id, where known.
    """
    sizes = best_of_sizes(reports[-1].metrics) if reports else []
    best_of = f"best_of_{sizes[-1]}" if sizes else "best_of"
    rates = {
        "IDM exact": "eval/idm_exact",
        "most common": "eval/majority_exact",
        "IDM ECE": "eval/idm_ece",
        "changed codes": "eval/code_accuracy_changed",
        "their ceiling": "eval/code_ceiling",
        "action first": "eval/action_first",
    }
    with_truth = {
        "label acc.": "label/accuracy",
        "of accepted": "label/accuracy_accepted",
        "FDP success": "eval/fdp_success",
        "copy rate": "eval/copy_rate",
        "IDM acc.": "eval/idm_accuracy",
        best_of.replace("_", " "): f"eval/{best_of}",
    }
    measured = any("eval/idm_ece" in report.metrics for report in reports)
    if not measured or any("eval/fdp_success" in report.metrics for report in reports):
        rates = with_truth
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
        caption="percent; below: 95 % interval over pairs",
    )
    for heading in ("round", "labels", "accepted", *rates, "time s"):
        # Narrow headings wrap, so that ten columns fit an ordinary terminal.
        table.add_column(heading.replace(" ", "\n", 1), justify="right", no_wrap=True)
    for report in reports:
        spent = seconds.get(report.round_id)
        table.add_row(
            _round(report),
            f"{report.num_labelled:,}",
            f"{report.num_accepted:,}",
            *(_rate(report.metrics.get(name)) for name in rates.values()),
            MISSING if spent is None else f"{spent:.0f}",
        )
    return table


def round_line(report: RoundReport, before: RoundReport | None, seconds: float) -> str:
    """A finished round in a line: rates in percent, the gain in points, labels, time, verdict.

    Args:
        report: of the round.
        before: of the round before it, None for round 0.
        seconds: wall time of the round.
    """
    sizes = best_of_sizes(report.metrics)
    named = {"FDP": "eval/fdp_success", "IDM": "eval/idm_accuracy"}
    if "eval/fdp_success" not in report.metrics:  # no oracle
        named = {"IDM exact": "eval/idm_exact", "changed codes": "eval/code_accuracy_changed"}
    if sizes:
        named[f"best of {sizes[-1]}"] = f"eval/best_of_{sizes[-1]}"
    found = {name: key for name, key in named.items() if key in report.metrics}
    rates = [f"{name} {100 * report.metrics[key].value:.1f}" for name, key in found.items()]
    first = next(iter(found.values()), "")
    if rates:
        rates[0] += " %"
    if before is not None:
        if first in before.metrics:
            gain = 100 * (report.metrics[first].value - before.metrics[first].value)
            rates[0] += f" ({gain:+.1f})"
        rates.append(f"{report.num_accepted:,} of {report.num_labelled:,} labels kept")
    blocked = ", ".join(result.name for result in report.blocked_by)
    verdict = f"; blocked by {blocked}" if blocked else ""
    return f"round {report.round_id}: {', '.join([*rates, duration(seconds)])}{verdict}"


def control_table(report: ControlReport) -> Table:
    """A round against its controls: their metrics, the gain, the share of the gap closed.

    Everything in percent (the gain in points), with the 95 % interval over pairs below. Without
    true labels (real video) there is no gap.
    """
    true = "true_labels" in report.arms
    on_truth = f"; true labels on {report.num_pool:,} pool pairs" if true else ""
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
        caption=f"each arm's FDP {report.steps} steps{on_truth}; below: 95 % interval, paired "
        "over pairs",
    )
    table.add_column("metric", no_wrap=True)
    headings = ("labelled set only", f"round {report.round_id}", *(["true labels"] * true), "gain")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    if true:
        table.add_column("gap closed", justify="right", no_wrap=True)
    for name, gain in report.gain.items():
        cells = [*(metrics[name] for metrics in report.arms.values()), gain]
        closed = [_rate(report.gap_closed.get(name))] if true else []
        table.add_row(name, *map(_rate, cells), *closed)
    return table


def control_line(report: ControlReport) -> str:
    """What the rounds brought the FDP beyond its labels, e.g. ``the rounds help: ...``."""
    gain = next(iter(report.gain.values()))
    value, low, high = (100 * number for number in (gain.value, gain.low, gain.high))
    verdict = "help" if low > 0 else "harm" if high < 0 else "bring nothing beyond noise"
    return (
        f"the rounds {verdict}: the FDP of round {report.round_id} is {value:+.1f} points "
        f"[{low:+.1f}, {high:+.1f}] from that of the labelled set alone after as many steps"
    )


def _round(report: RoundReport) -> str:
    """The round's number; below it the guards' verdict, unless all passed."""
    number = str(report.round_id)
    if not report.promoted:
        return f"{number}\n[red]blocked[/red]"
    return f"{number}\n[dim]accepted[/dim]" if report.accepted_guards else number


def _rate(estimate: Estimate | None) -> str:
    if estimate is None:
        return MISSING
    dash = "-" if estimate.low >= 0 else " to "
    interval = f"{100 * estimate.low:.0f}{dash}{100 * estimate.high:.0f}"
    return f"{100 * estimate.value:.1f}\n[dim]{interval}[/dim]"
