"""What a job's log says, for people and for programs."""

import io
import json
from collections.abc import Callable

import pytest
from rich.console import Console
from rich.table import Table

from dynamics.core import console, progress
from dynamics.core.console import ProgressView, print_whole
from dynamics.core.progress import Detail, duration

Wait = Callable[[float], None]


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Wait:
    """A clock that only moves when it is told to."""
    now = [1000.0]

    def move(seconds: float) -> None:
        now[0] += seconds

    for module in (console, progress):
        monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return move


def view(*, as_json: bool = False) -> tuple[ProgressView, Callable[[], list[str]]]:
    out = io.StringIO()
    made = ProgressView(Console(file=out, width=160, soft_wrap=True), as_json=as_json)
    return made, lambda: out.getvalue().splitlines()


def test_a_stage_says_where_it_is_how_fast_and_how_long(wait: Wait) -> None:
    show, lines = view()
    show(1000, 12000, "label, round 1")
    wait(100)
    show(2000, 12000, "label, round 1")
    wait(1000)
    show(12000, 12000, "label, round 1")
    said = [line.split(" ", 2) for line in lines()]
    assert [rest for *_, rest in said] == [
        "label, round 1, 1,000 of 12,000",
        "label, round 1, 2,000 of 12,000, 10/s, 16 min 40 s left",
        "label, round 1, 12,000 of 12,000, in 18 min 20 s",
    ]
    assert [len(clock) for _, clock, _ in said] == [8, 8, 8]


def test_the_pace_of_a_stage_that_went_on_counts_from_there_and_ends_with_it(wait: Wait) -> None:
    pace = progress.Pace()
    assert pace.advance(600, 1000, "train")
    wait(10)
    assert not pace.advance(800, 1000, "train")
    assert (pace.per_s, pace.eta_s) == (20, 10)
    wait(10)
    pace.advance(1000, 1000, "train")
    wait(100)
    assert (pace.seconds, pace.per_s, pace.eta_s) == (20, 20, 0)
    assert pace.advance(0, 0, "serve")
    assert (pace.per_s, pace.eta_s) == (0, None)


def test_a_fit_says_its_losses(wait: Wait) -> None:
    show, lines = view()
    show(0, 600, "train IDM and FDP, round 1")
    wait(60)
    show(300, 600, "train IDM and FDP, round 1", Detail(losses={"idm": 0.12345, "fdp": 0.5}))
    wait(60)
    show(600, 600, "train IDM and FDP, round 1", Detail(losses={"idm": 0.1, "fdp": 0.4}))
    assert [line.partition("600, ")[2] for line in lines()[1:]] == [
        "5/s, 1 min left, loss IDM 0.12 FDP 0.5",
        "in 2 min, loss IDM 0.1 FDP 0.4",
    ]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (80, "train IDM and FDP, round 1 ╸    300/1200 5/s, 3 min left, loss IDM 0.12 FDP 0.51"),
        (60, "train IDM and FDP, round 1 ╸    300/1200 5/s, 3 min left"),
    ],
)
def test_a_bar_of_a_fit_fits_a_narrow_terminal(wait: Wait, columns: int, said: str) -> None:
    out = io.StringIO()
    terminal = Console(file=out, width=columns, force_terminal=True, color_system=None)
    with ProgressView(terminal) as show:
        show(0, 1200, "train IDM and FDP, round 1")
        wait(60)
        show(300, 1200, "train IDM and FDP, round 1", Detail(losses={"idm": 0.123, "fdp": 0.513}))
    assert said in out.getvalue()


def test_nothing_is_said_while_nothing_changes(wait: Wait) -> None:
    show, lines = view()
    for _ in range(1000):
        show(7, 1000, "train")
        wait(60)
    assert len(lines()) == 1


def test_a_line_comes_at_a_percent_or_a_minute_but_not_within_seconds(wait: Wait) -> None:
    show, lines = view()
    for done in range(1001):  # a tenth of a percent every second
        show(done, 1000, "quick")
        wait(1)
    assert len(lines()) == 101
    for done in range(1, 1001):  # every minute
        show(done, 10**9, "slow")
        wait(30)
    assert len(lines()) == 101 + 500
    for done in range(100):  # all in a second
        show(done, 1000, "at once")
        wait(0.01)
    assert len(lines()) == 602


def test_what_a_stage_waits_for_is_said_once(wait: Wait) -> None:
    show, lines = view()
    show(0, 9, "label")
    for _ in range(3):
        wait(1)
        show(0, 9, "label", Detail(note="needs 1 x (1 GPU)"))
    wait(1)
    show(0, 9, "label")
    assert [line.split(" ", 2)[2] for line in lines()] == [
        "label, 0 of 9",
        "label, 0 of 9; needs 1 x (1 GPU)",
        "label, 0 of 9",
    ]


def test_every_line_for_programs_is_a_json_object(wait: Wait) -> None:
    show, lines = view(as_json=True)
    show(0, 12, "label, round 1")
    wait(6)
    show(6, 12, "label, round 1", Detail(queued=3, losses={"idm": 0.25}))
    show.line("warning: :s3: [b] is not there", level="warning")
    first, second, third = map(json.loads, lines())
    assert (first["per_s"], first["eta_s"]) == (0, None)
    time = second.pop("time")
    assert time.endswith("+00:00")
    assert second == {
        "level": "info",
        "message": "label, round 1",
        "done": 6,
        "total": 12,
        "per_s": 1.0,
        "eta_s": 6,
        "note": "",
        "queued": 3,
        "losses": {"idm": 0.25},
    }
    assert (third["level"], third["message"]) == ("warning", "warning: :s3: [b] is not there")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.4, "0 s"),
        (59.6, "1 min"),
        (425, "7 min 5 s"),
        (3600, "1 h"),
        (12000, "3 h 20 min"),
        (522000, "6 d 1 h"),
        (86410, "1 d"),
    ],
)
def test_a_time_is_told_in_its_two_largest_units(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_a_narrow_terminal_cuts_no_figure() -> None:
    table = Table("stage", "hours of all", title="a long title")
    table.add_row("training one after the other", "1,234,567")
    out = io.StringIO()
    print_whole(Console(file=out, width=12), table)
    assert "…" not in out.getvalue()
    assert all(word in out.getvalue() for word in ("training", "1,234,567", "stage", "hours"))
