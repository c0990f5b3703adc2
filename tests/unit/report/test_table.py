"""The closing table of the command."""

from dataclasses import replace
from io import StringIO

from rich.console import Console

from dynamics.core.records import Estimate, GuardResult, RoundReport
from dynamics.report.lead import lead
from dynamics.report.table import round_line, round_table


def report(round_id: int, accepted: bool) -> RoundReport:
    failed = GuardResult(
        name="copy_rate", value=0.9, limit=0.5, passed=False, message="copy_rate 0.9, limit 0.5"
    )
    return RoundReport(
        round_id=round_id,
        num_labelled=0,
        num_accepted=0,
        reasons={},
        metrics={},
        models={},
        guards=(failed,),
        accepted_guards=("copy_rate",) if accepted else (),
    )


def test_a_blocked_and_an_accepted_round_are_marked() -> None:
    console = Console(file=StringIO(), width=80)
    console.print(round_table([report(1, accepted=True), report(2, accepted=False)], {}))
    assert isinstance(console.file, StringIO)
    rows = [line.split()[:1] for line in console.file.getvalue().splitlines()]
    assert [row for row in rows if row in (["1"], ["2"], ["accepted"], ["blocked"])] == [
        ["1"],
        ["accepted"],
        ["2"],
        ["blocked"],
    ]


def measured(round_id: int, fdp: float, idm: float, best: float) -> RoundReport:
    rates = {"eval/fdp_success": fdp, "eval/idm_accuracy": idm, "eval/best_of_8": best}
    metrics = {
        name: Estimate(value=value, low=value, high=value, num_items=1000)
        for name, value in rates.items()
    }
    return replace(report(round_id, accepted=True), metrics=metrics)


def test_a_finished_round_is_one_line_with_its_gain() -> None:
    first = measured(0, 0.459, 0.75, 0.5)
    second = replace(measured(1, 0.639, 0.782, 0.72), num_labelled=12000, num_accepted=9600)
    assert round_line(first, None, 100) == (
        "round 0: FDP 45.9 %, IDM 75.0, best of 8 50.0, 1 min 40 s"
    )
    assert round_line(second, first, 171) == (
        "round 1: FDP 63.9 % (+18.0), IDM 78.2, best of 8 72.0, 9,600 of 12,000 labels kept, "
        "2 min 51 s"
    )
    blocked = replace(second, accepted_guards=())
    assert round_line(blocked, first, 171).endswith("2 min 51 s; blocked by copy_rate")


def test_a_run_without_an_oracle_shows_what_needs_none_in_80_columns() -> None:
    values = {
        "eval/idm_exact": 0.078,
        "eval/majority_exact": 0.094,
        "eval/idm_ece": 0.91,
        "eval/code_accuracy_changed": 0.25,
        "eval/code_ceiling": 0.9,
        "eval/action_first": 0.125,
    }
    metrics = {
        name: Estimate(value=value, low=value, high=value, num_items=64)
        for name, value in values.items()
    }
    found = RoundReport(
        round_id=0, num_labelled=0, num_accepted=0, reasons={}, metrics=metrics, models={}
    )
    console = Console(file=StringIO(), width=80)
    console.print(round_table([found], {0: 61.0}))
    assert isinstance(console.file, StringIO)
    printed = console.file.getvalue()
    cells = [line.split() for line in printed.splitlines()]
    assert ["0", "0", "0", "7.8", "9.4", "91.0", "25.0", "90.0", "12.5", "61"] in cells
    assert "FDP" not in printed
    said = lead([found])[0].replace("\N{NO-BREAK SPACE}", " ")
    assert said.startswith("After round 0 the IDM writes the right sentence for 7.8 %")
    assert round_line(found, None, 61) == "round 0: IDM exact 7.8 %, changed codes 25.0, 1 min 1 s"
    assert round_line(replace(found, round_id=1, metrics={}), found, 61) == (
        "round 1: 0 of 0 labels kept, 1 min 1 s"
    )
