"""The closing table of the command."""

from io import StringIO

from rich.console import Console

from dynamics.core.records import GuardResult, RoundReport
from dynamics.report.table import round_table


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
