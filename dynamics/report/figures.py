"""The page's charts, from reports, training logs and wall times."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

from dynamics.core.records import Estimate, RoundReport
from dynamics.evaluation.metrics import best_of_prefix, best_of_sizes, choosers
from dynamics.report.charts import (
    PERCENT,
    Axis,
    Bar,
    Part,
    Point,
    Series,
    line_chart,
    percent_axis,
    stacked_bars,
)
from dynamics.report.labels import CalibrationView

STAGES = ("prepare", "label", "filter", "train", "evaluate", "guard", "serve")
"""Stages in the order of the loop."""

_POINTS = 80
"""Points of a risk-coverage curve: more than the eye tells apart at its width."""
_LEAST_COVERAGE = 0.02
"""Coverage below which a risk-coverage curve shows noise: a few labels decide it."""


def rounds_chart(reports: Sequence[RoundReport]) -> Markup:
    """Rates on held-out pairs over the rounds."""
    lines = [
        ("FDP success", "eval/fdp_success", "s1"),
        ("IDM accuracy", "eval/idm_accuracy", "s2"),
        ("copies the input", "eval/copy_rate", "s3"),
        ("tokenizer ceiling", "eval/tokenizer_ceiling", "s4 dashed"),
    ]
    if not any("eval/fdp_success" in report.metrics for report in reports):
        lines = [
            ("changed codes", "eval/code_accuracy_changed", "s1"),
            ("IDM exact", "eval/idm_exact", "s2"),
            ("own action first", "eval/action_first", "s3"),
            ("one sentence", "eval/majority_exact", "s4 dashed"),
        ]
    series = [_over_rounds(reports, *line) for line in lines]
    return _rounds_chart("Rates on held-out pairs by round", series, PERCENT)


def versus_chart(reports: Mapping[str, Sequence[RoundReport]]) -> Markup:
    """FDP and IDM of several runs over the rounds, by the runs' names."""
    series = [
        _over_rounds(of_run, f"{name}: {model}", metric, f"s{number} p{line}")
        for line, (name, of_run) in enumerate(reports.items(), start=1)
        for number, (model, metric) in enumerate(
            [("FDP", "eval/fdp_success"), ("IDM", "eval/idm_accuracy")], start=1
        )
    ]
    return _rounds_chart("Rates on held-out pairs by round, of two runs", series, PERCENT)


def labels_chart(reports: Sequence[RoundReport]) -> Markup | None:
    """Share of correct labels over the rounds; None without ground truth."""
    lines = [
        ("accepted labels", "label/accuracy_accepted", "s1"),
        ("all labels", "label/accuracy", "s2"),
    ]
    series = [_over_rounds(reports, *line) for line in lines]
    bounds = [bound for one in series for point in one.points for bound in (point.low, point.high)]
    if not bounds:
        return None
    return _rounds_chart("Share of correct labels by round", series, percent_axis(bounds))


def best_of_chart(round_id: int, metrics: dict[str, Estimate]) -> Markup:
    """Success against N, per verifier."""
    sizes = best_of_sizes(metrics)
    # Equal steps for doublings of N.
    places = {size: float(index) for index, size in enumerate(sizes)}
    series = [
        Series(
            name=name,
            style=f"s{1 + number % 5} p{1 + number % 5}",
            points=[
                _point(places[size], metrics[metric], f"{name}, N = {size}")
                for size in sizes
                if (metric := f"eval/{best_of_prefix(chooser)}_{size}") in metrics
            ],
        )
        for number, (chooser, name) in enumerate(choosers().items())
    ]
    if greedy := metrics.get("eval/best_of_greedy"):
        ends = sorted({0.0, float(len(sizes) - 1)})
        series.append(_level("greedy", greedy.value, ends))
    x_axis = Axis(low=0, high=len(sizes) - 1, ticks=[(places[size], str(size)) for size in sizes])
    return line_chart(
        f"Best of N in round {round_id}", series, x_axis, PERCENT, x_title="N", width=520
    )


def loss_chart(task: str, curves: Mapping[int, Sequence[dict[str, float]]]) -> Markup:
    """Training loss of a task over the steps, one line per round id, on a logarithmic scale."""
    series = [
        Series(
            name=f"round {round_id}",
            style=f"s{1 + round_id % 4} p{1 + round_id % 4}",
            dots=False,
            points=[
                Point(x=line["step"], y=math.log10(line["loss"]), low=0, high=0, note="")
                for line in lines
                if line.get("loss", 0) > 0
            ],
        )
        for round_id, lines in curves.items()
    ]
    points = [point for one in series for point in one.points]
    last = max((point.x for point in points), default=1.0)
    return line_chart(
        f"{task.upper()} training loss",
        series,
        Axis(low=0, high=last, ticks=[(0, "0"), (last, f"{last:.0f}")]),
        _log_axis([point.y for point in points]),
        x_title="step",
        width=520,
        height=260,
    )


def reliability_chart(view: CalibrationView) -> Markup:
    """Share of correct labels against confidence; the dashed diagonal is perfect calibration."""
    points = [
        _point(one.confidence, one.correct, f"confidence {one.confidence:.2f}") for one in view.bins
    ]
    axis = percent_axis([*(p.x for p in points), *(p.low for p in points), 1.0])
    diagonal = [Point(x=x, y=x, low=0, high=0, note="") for x in (axis.low, axis.high)]
    series = [
        Series(name="calibrated", points=diagonal, style="s4 dashed", dots=False),
        Series(name=f"labels, round {view.round_id}", points=points, style="s1"),
    ]
    title = f"Share of correct labels by confidence in round {view.round_id}"
    return line_chart(title, series, axis, axis, x_title="confidence", width=520)


def risk_coverage_chart(view: CalibrationView) -> Markup:
    """Share of wrong labels among those that each score would accept, by accepted share."""
    series = [
        Series(
            name=score.name,
            style=f"s{number} p{number}",
            dots=False,
            points=_thinned(score.coverage, score.risk),
        )
        # They all end in the same point: the names are stacked in the order of the curves.
        for number, score in reversed(list(enumerate(view.scores, start=1)))
    ]
    y_axis = percent_axis([0.0, *(point.y for one in series for point in one.points)])
    if np.isfinite(view.accepted_risk):
        note = f"accepted {view.accepted:.0%}: {view.accepted_risk:.1%} wrong"
        point = Point(x=view.accepted, y=view.accepted_risk, low=0, high=0, note=note)
        series.append(Series(name="", points=[point], style="here"))
    title = f"Error rate of the accepted labels by accepted share in round {view.round_id}"
    return line_chart(title, series, PERCENT, y_axis, x_title="accepted share", width=520)


def time_chart(seconds: Mapping[int, Mapping[str, float]]) -> Markup:
    """Wall seconds per round id, by stage."""
    bars = [
        Bar(
            name=f"round {round_id}",
            parts=[
                Part(name=stage, value=spent[stage], style=stage_style(stage))
                for stage in sorted(spent, key=stage_order)
            ],
        )
        for round_id, spent in seconds.items()
    ]
    return stacked_bars("Wall seconds of every round by stage", bars, unit="s")


def stage_order(stage: str) -> int:
    """Place of a stage in the loop; unknown ones last."""
    return STAGES.index(stage) if stage in STAGES else len(STAGES)


def stage_style(stage: str) -> str:
    """Class of the style sheet that colours a stage."""
    return f"t{stage_order(stage) + 1}"


def _over_rounds(reports: Sequence[RoundReport], name: str, metric: str, style: str) -> Series:
    found = [(one.round_id, one.metrics[metric]) for one in reports if metric in one.metrics]
    points = [_point(x, value, f"{name}, round {x}") for x, value in found]
    return Series(name=name, points=points, style=style)


def _rounds_chart(title: str, series: Sequence[Series], y_axis: Axis) -> Markup:
    rounds = sorted({int(point.x) for one in series for point in one.points}) or [0]
    x_axis = Axis(low=rounds[0], high=rounds[-1], ticks=[(n, str(n)) for n in rounds])
    return line_chart(title, series, x_axis, y_axis, x_title="round", width=520)


def _log_axis(logarithms: Sequence[float]) -> Axis:
    """Axis around base-10 logarithms; its ends are 1, 2 or 5 times a power of ten."""
    low, high = min(logarithms, default=0.0), max(logarithms, default=0.0)
    decades = range(math.floor(low), math.ceil(high) + 1)
    round_ones = [(d + math.log10(n), f"{n * 10.0**d:g}") for d in decades for n in (1, 2, 5)]
    first = max(at for at, _ in round_ones if at <= low)
    last = min((at for at, _ in round_ones if at >= high and at > first))
    return Axis(low=first, high=last, ticks=[one for one in round_ones if first <= one[0] <= last])


def _thinned(coverage_N: np.ndarray, risk_N: np.ndarray) -> list[Point]:
    first = min(int(_LEAST_COVERAGE * len(coverage_N)), len(coverage_N) - 1)
    places = np.unique(np.linspace(first, len(coverage_N) - 1, _POINTS).round().astype(int))
    return [
        Point(x=float(coverage_N[place]), y=float(risk_N[place]), low=0, high=0, note="")
        for place in places
    ]


def _level(name: str, value: float, ends: Sequence[float]) -> Series:
    """A level line to compare others with."""
    points = [Point(x=x, y=value, low=0, high=0, note=name) for x in ends]
    return Series(name=name, points=points, style="s4 dashed", dots=False)


def _point(x: float, value: Estimate, what: str) -> Point:
    note = f"{what}: {value.percent()} %"
    return Point(x=x, y=value.value, low=value.low, high=value.high, note=note)
