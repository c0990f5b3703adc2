"""One self-contained HTML page per run: results with intervals, samples, labels, time, lineage.

No script, no request to anywhere: pictures are inline, and the page's own policy forbids the rest.
Action sentences and file names come from outside, so everything is escaped.
"""

import base64
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dynamics.evaluation.comparison import ControlReport
from dynamics.evaluation.summary import best_of_sizes
from dynamics.ledger.files import write_bytes
from dynamics.records import Estimate, RoundReport
from dynamics.report.charts import PERCENT, Axis, Point, Series, line_chart
from dynamics.run_folder import RunFolder, read_json

_STAGES = ("prepare", "label", "select", "grow", "train", "evaluate", "serve")
_KIND_PREFIX = "eval/fdp_success_"
_CURVE_NAMES = {
    "best_of": "IDM + FDP likelihood",
    "idm_best_of": "IDM likelihood",
    "oracle_best_of": "oracle (upper bound)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundView:
    """What the page shows of one round."""

    report: RoundReport
    seconds: dict[str, float]
    """Wall time per stage."""
    grid_png: bytes | None = None
    losses: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    """Training log per task (``idm``, ``fdp``): lines with ``step`` and ``loss``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """What the page shows of a run."""

    name: str
    digest: str
    """Of the config."""
    config: dict[str, Any]
    rounds: Sequence[RoundView]
    controls: ControlReport | None = None
    ingest: dict[str, Any] = field(default_factory=dict)
    """Per split, what ingest counted."""


def write_page(run: RunFolder) -> Path:
    """Write ``report.html`` of a run folder, from whatever its finished rounds left there.

    Raises:
        UserError: no run lies there, or one of its files is damaged.
    """
    path = run.root / "report.html"
    write_bytes(path, render(collect(run)).encode())
    return path


def collect(run: RunFolder) -> RunView:
    """Read a run folder."""
    cfg = run.config()
    rounds = [
        RoundView(
            report=report,
            seconds=run.timings(report.round_id),
            grid_png=_bytes(run.round(report.round_id) / "grid.png"),
            losses={task: run.training_log(report.round_id, task) for task in ("idm", "fdp")},
        )
        for report in run.reports(cfg.rounds)
    ]
    # The newest round with controls: more rounds may have been asked for since.
    found = sorted((run.root / "controls").glob("round-*/report.json"))
    ingest = run.data / "ingest.json"
    return RunView(
        name=cfg.name,
        digest=cfg.digest(),
        # A tracking URI may carry a password, and the page is made to be passed on.
        config=cfg.model_dump(mode="json", exclude={"run_dir", "track"}),
        rounds=rounds,
        controls=ControlReport.from_json(read_json(found[-1])) if found else None,
        ingest=read_json(ingest) if ingest.is_file() else {},
    )


def render(view: RunView) -> str:
    """The page as HTML text."""
    environment = Environment(
        loader=PackageLoader("dynamics.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": Estimate.percent,
        "data_uri": _data_uri,
        "pretty_json": lambda tree: json.dumps(tree, indent=2, sort_keys=True),
    }
    return environment.get_template("page.html.j2").render(
        view=view,
        first=view.rounds[0] if view.rounds else None,
        last=view.rounds[-1] if view.rounds else None,
        rounds_chart=_rounds_chart(view.rounds),
        best_of_charts=_best_of_charts(view.rounds),
        loss_charts=_loss_charts(view.rounds),
        kinds=_kinds(view.rounds),
        reasons=_all_keys(one.report.reasons for one in view.rounds),
        stages=sorted(_all_keys(one.seconds for one in view.rounds), key=_order),
        largest=max(_sizes(view.rounds), default=None),
    )


def _rounds_chart(rounds: Sequence[RoundView]) -> Markup:
    lines = [
        ("FDP success", "eval/fdp_success", "s1"),
        ("IDM accuracy", "eval/idm_accuracy", "s2"),
        ("copies the input", "eval/copy_rate", "s3"),
        ("tokenizer ceiling", "eval/tokenizer_ceiling", "s4 dashed"),
    ]
    series = [
        Series(name=name, points=_over_rounds(rounds, metric), style=style)
        for name, metric, style in lines
    ]
    last = rounds[-1].report.round_id if rounds else 0
    x_axis = Axis(low=0, high=last, ticks=[(n, str(n)) for n in range(last + 1)])
    return line_chart("Rates on held-out pairs by round", series, x_axis, PERCENT, x_title="round")


def _over_rounds(rounds: Sequence[RoundView], metric: str) -> list[Point]:
    measured = [(one.report.round_id, one.report.metrics.get(metric)) for one in rounds]
    return [_point(x, value, f"round {x}") for x, value in measured if value is not None]


def _best_of_charts(rounds: Sequence[RoundView]) -> list[tuple[int, Markup]]:
    """The first and the last round's curves: the verifier matters more as the FDP gets better."""
    shown = {one.report.round_id: one.report.metrics for one in (*rounds[:1], *rounds[-1:])}
    return [(r, _best_of_chart(r, m)) for r, m in shown.items() if best_of_sizes(m)]


def _best_of_chart(round_id: int, metrics: dict[str, Estimate]) -> Markup:
    sizes = best_of_sizes(metrics)
    # Equal steps for doublings of N.
    places = {size: float(index) for index, size in enumerate(sizes)}
    series = [
        Series(
            name=name,
            style=f"s{number}",
            points=[
                _point(places[size], metrics[f"eval/{curve}_{size}"], f"{name}, N = {size}")
                for size in sizes
                if f"eval/{curve}_{size}" in metrics
            ],
        )
        for number, (curve, name) in enumerate(_CURVE_NAMES.items(), start=1)
    ]
    if greedy := metrics.get("eval/best_of_greedy"):
        ends = sorted({0.0, float(len(sizes) - 1)})
        flat = [Point(x=x, y=greedy.value, low=0, high=0, note="greedy") for x in ends]
        series.append(Series(name="greedy decoding", points=flat, style="s4 dashed", dots=False))
    x_axis = Axis(low=0, high=len(sizes) - 1, ticks=[(places[size], str(size)) for size in sizes])
    return line_chart(
        f"Best of N in round {round_id}", series, x_axis, PERCENT, x_title="N", width=520
    )


def _loss_charts(rounds: Sequence[RoundView]) -> list[tuple[str, Markup]]:
    return [
        (task.upper(), _loss_chart(task, rounds))
        for task in ("fdp", "idm")
        if any(one.losses.get(task) for one in rounds)
    ]


def _loss_chart(task: str, rounds: Sequence[RoundView]) -> Markup:
    series = [
        Series(
            name=f"round {one.report.round_id}",
            style=f"s{1 + one.report.round_id % 4}",
            dots=False,
            points=[
                Point(x=line["step"], y=line["loss"], low=0, high=0, note="")
                for line in one.losses.get(task, [])
                if "loss" in line
            ],
        )
        for one in rounds
    ]
    points = [point for one in series for point in one.points]
    highest_x = max((point.x for point in points), default=1.0)
    highest_y = max((point.y for point in points), default=1.0)
    x_axis = Axis(low=0, high=highest_x, ticks=[(0, "0"), (highest_x, f"{highest_x:.0f}")])
    y_ticks = [(highest_y * n / 4, f"{highest_y * n / 4:.2f}") for n in range(5)]
    return line_chart(
        f"{task.upper()} training loss",
        series,
        x_axis,
        Axis(low=0, high=highest_y, ticks=y_ticks),
        x_title="step",
        width=520,
        height=240,
    )


def _point(x: float, value: Estimate, what: str) -> Point:
    note = f"{what}: {value.percent()} %"
    return Point(x=x, y=value.value, low=value.low, high=value.high, note=note)


def _kinds(rounds: Sequence[RoundView]) -> list[str]:
    names = _all_keys(one.report.metrics for one in rounds)
    return [name.removeprefix(_KIND_PREFIX) for name in names if name.startswith(_KIND_PREFIX)]


def _sizes(rounds: Sequence[RoundView]) -> list[int]:
    return best_of_sizes(rounds[-1].report.metrics) if rounds else []


def _all_keys(mappings: Iterable[dict[str, Any]]) -> list[str]:
    """Keys of all mappings, in the order of their first appearance."""
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))


def _order(stage: str) -> int:
    """Place of a stage in the loop; unknown ones last."""
    return _STAGES.index(stage) if stage in _STAGES else len(_STAGES)


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
