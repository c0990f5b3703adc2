"""One self-contained HTML page per run: results with intervals, scenes, labels, time, lineage.

No request: pictures are inline. Nothing needs the one script, which sorts tables and lets Escape
close an enlarged picture; the page's content policy names its digest and forbids the rest.
Action sentences and file names come from outside, so everything is escaped.
"""

import json
import shlex
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dynamics.core.config import LoopConfig
from dynamics.core.domain import Domain, load_domain
from dynamics.core.errors import UserError
from dynamics.core.images import data_uri, frame_of
from dynamics.core.places import Place, matching
from dynamics.core.records import (
    PAIR_SCHEMA,
    PICTURE_SCHEMA,
    TRANSITION_SCHEMA,
    TRUTH_SCHEMA,
    RoundReport,
)
from dynamics.evaluation.audit import LabelAudit
from dynamics.evaluation.comparison import ControlReport
from dynamics.evaluation.confusion import KindView, SentenceView, by_kind, confusion
from dynamics.evaluation.foresight import BEAM, NUM_CANDIDATES, NUM_SOURCES
from dynamics.evaluation.guards.rules import figure
from dynamics.evaluation.heldout import results_schema
from dynamics.evaluation.metrics import HEADLINE_VERIFIER, ROLLOUT_STEPS, best_of_sizes
from dynamics.inference.verifiers import descriptions, label_of
from dynamics.models import load_image_tokenizer
from dynamics.models.image_tokenizer import ImageTokenizer
from dynamics.report.failures import FailureView, failures, wrong_frames
from dynamics.report.figures import (
    best_of_chart,
    labels_chart,
    loss_chart,
    reliability_chart,
    risk_coverage_chart,
    rounds_chart,
    stage_order,
    stage_style,
    time_chart,
)
from dynamics.report.grid import grid_rows, shown_scenes
from dynamics.report.labels import (
    CalibrationView,
    LabelsView,
    LabelTables,
    calibration,
    chosen_labels,
    labels_view,
)
from dynamics.report.lead import lead
from dynamics.report.pictures import Frames, Picture, picture
from dynamics.report.scenes import SceneView, scenes
from dynamics.storage.files import write_bytes
from dynamics.storage.ledger import Ledger
from dynamics.storage.run_folder import REPORT, RunFolder, read_json, read_record
from dynamics.storage.tables import iter_table, read_table, take_rows

_KIND_PREFIX = "eval/fdp_success_"
_MEASURED = (
    "eval/idm_exact",
    "eval/majority_exact",
    "eval/idm_ece",
    "eval/code_accuracy",
    "eval/code_accuracy_copy",
    "eval/code_accuracy_changed",
    "eval/code_ceiling",
    "eval/action_first",
    "eval/action_sensitivity",
)
"""Metrics that need no oracle, in the order of their table."""
_FORESIGHT = {
    "both followed": "eval/counterfactual_both",
    "one followed": "eval/counterfactual_each",
    "copies": "eval/counterfactual_copies",
    "planner's regret": "eval/plan_regret",
    "of any plan": "eval/plan_regret_random",
}
"""Headings of what `evaluation.foresight` asks, roll-outs aside, to their metrics."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundView:
    """One round's data on the page."""

    report: RoundReport
    seconds: dict[str, float]
    """Wall time per stage."""
    losses: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    """Training log per task (``idm``, ``fdp``): lines with ``step`` and ``loss``."""
    labels: LabelsView | None = None
    """None in round 0, which labels nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """A run's data on the page."""

    name: str
    digest: str
    """Digest of the config."""
    config: dict[str, Any]
    rounds: Sequence[RoundView]
    controls: ControlReport | None = None
    ingest: dict[str, Any] = field(default_factory=dict)
    """Counts of ingest, per split."""
    scenes: Sequence[SceneView] = ()
    calibration: CalibrationView | None = None
    """Calibration of the last round's labels; None without ground truth."""
    anyway: Sequence[str] = ()
    """What `dynamics check` refuses the run's data for, and it was started all the same."""
    audit: LabelAudit | None = None
    """What people say of accepted labels, of the last round that was audited."""
    study: Sequence[tuple[str, bytes]] = ()
    """Names and PNG files of the curves that `dynamics study --publish` left in the folder."""
    sentences: Sequence[SentenceView] = ()
    """The last promoted round's held-out pairs by true sentence; only without types of actions."""
    kinds: Sequence[KindView] = ()
    """The same by true type of action; only with types."""
    failures: Sequence[FailureView] = ()
    """Wrong frames of the last round."""
    command: str
    """The command that makes a run of equal results."""
    origin: dict[str, Any] = field(default_factory=dict)
    """Date, revision and hardware; empty for a run of an older version."""
    has_frames: bool = True
    """False when the base checkpoint, which decodes the frames, is not on this machine."""


def write_page(run: RunFolder, images: ImageTokenizer | None = None) -> Place:
    """Write ``report.html`` of a run folder from the files of its finished rounds.

    Args:
        run: the folder.
        images: decodes the frames; None loads the tokenizer of the run's base.

    Raises:
        UserError: no run lies there, or one of its files is damaged.
    """
    write_bytes(run.page, render(collect(run, images)).encode())
    return run.page


def collect(run: RunFolder, images: ImageTokenizer | None = None) -> RunView:
    """Read a run folder; arguments as `write_page`."""
    cfg = run.config()
    reports = run.reports(cfg.rounds)
    images = images or _load_images(cfg)
    domain = load_domain(cfg)
    decided = _decided(run, domain, reports)
    drawn = _drawn(run, cfg, reports, decided, images) if images and reports else _Drawn()
    rounds = [
        RoundView(
            report=report,
            seconds=run.timings(report.round_id),
            losses={task: run.loss_curve(report.round_id, task) for task in ("idm", "fdp")},
            labels=drawn.labels.get(report.round_id),
        )
        for report in reports
    ]
    # The newest round with controls: more rounds may have been asked for since.
    stored = [run.controls(one.round_id) / REPORT for one in reports]
    found = [path for path in stored if path.exists()]
    audits = [path for one in reports if (path := run.audit(one.round_id)).exists()]
    shown = [one for one in reports if one.promoted] or reports
    results = run.results(shown[-1].round_id) if shown else None
    items = (
        read_table(results, results_schema(cfg.evaluate.best_of))
        if results is not None and results.exists()
        else None
    )
    return RunView(
        name=run.root.name,
        digest=run.digest,
        # A tracking URI may carry a password, and the page is made to be passed on.
        config=cfg.model_dump(mode="json", exclude={"run_dir", "track"}),
        rounds=rounds,
        controls=read_record(found[-1], ControlReport.from_json) if found else None,
        ingest=read_json(run.ingest) if run.ingest.is_file() else {},
        scenes=drawn.scenes,
        failures=drawn.failures,
        command=_command(cfg),
        origin=read_json(run.origin) if run.origin.is_file() else {},
        calibration=calibration(decided[max(decided)], max(decided)) if decided else None,
        anyway=read_json(run.record).get("anyway", ()),
        audit=read_record(audits[-1], LabelAudit.from_json) if audits else None,
        study=[(path.stem, path.read_bytes()) for path in matching(run.root, "study/*.png")],
        sentences=() if items is None else confusion(items),
        kinds=() if items is None else by_kind(items, domain),
        has_frames=images is not None,
    )


def _command(cfg: LoopConfig) -> str:
    """The command of the run, without what does not decide its results."""
    own = [f"{key}={json.dumps(value)}" for key, value in cfg.chosen().items()]
    return shlex.join(["dynamics", "bootstrap", "--rounds", str(cfg.rounds), *own])


@dataclass(frozen=True, slots=True)
class _Drawn:
    """All that shows frames."""

    labels: Mapping[int, LabelsView] = field(default_factory=dict)
    scenes: Sequence[SceneView] = ()
    failures: Sequence[FailureView] = ()


def _load_images(cfg: LoopConfig) -> ImageTokenizer | None:
    """The base's image tokenizer; None where the base is missing, as on another machine."""
    try:
        return load_image_tokenizer(cfg.model.family, cfg.base_path())
    except UserError:
        return None


def _drawn(
    run: RunFolder,
    cfg: LoopConfig,
    reports: Sequence[RoundReport],
    decided: Mapping[int, LabelTables],
    images: ImageTokenizer,
) -> _Drawn:
    """Examples of every round's labels, scenes, failures; their frames are decoded together."""
    chosen = {round_id: chosen_labels(tables) for round_id, tables in decided.items()}
    paths = {one.round_id: run.results(one.round_id) for one in reports}
    schema = results_schema(cfg.evaluate.best_of)
    items = {one: read_table(path, schema) for one, path in paths.items() if path.exists()}
    heldout = read_table(run.heldout, TRANSITION_SCHEMA)
    shown = {round_id: shown_scenes(rows, heldout) for round_id, rows in items.items()}
    wrong = [wrong_frames(items[max(items)], heldout)] if items else []
    frames = Frames(images, chain(shown.values(), *chosen.values(), wrong))
    labels = {one: labels_view(tables, chosen[one], frames) for one, tables in decided.items()}
    rows_of_round = {round_id: grid_rows(rows, frames) for round_id, rows in shown.items()}
    largest = max(cfg.evaluate.best_of, default=None)
    return _Drawn(
        labels=labels,
        scenes=scenes(rows_of_round, largest, _real_pictures(run)),
        failures=[one for rows in wrong for one in failures(rows, frames)],
    )


def _real_pictures(run: RunFolder) -> dict[str, tuple[Picture, Picture]]:
    """The frames of the first held-out pairs before they were encoded."""
    if not run.pictures.exists():
        return {}
    return {
        row["pair_id"]: (picture(frame_of(row["source"])), picture(frame_of(row["target"])))
        for row in read_table(run.pictures, PICTURE_SCHEMA).to_pylist()
    }


def _decided(
    run: RunFolder, domain: Domain, reports: Sequence[RoundReport]
) -> dict[int, LabelTables]:
    """The labels of every round that made some."""
    ledger = Ledger(run.ledger)
    committed = sorted({one.round_id for one in reports}.intersection(ledger.rounds()))
    return {one: _label_tables(run, ledger, one, domain) for one in committed}


def _label_tables(run: RunFolder, ledger: Ledger, round_id: int, domain: Domain) -> LabelTables:
    def decided() -> Iterator[pa.Table]:
        return ledger.iter_decided(round_id, ["pair_id", "action", "scores"])

    decisions = ledger.decisions(round_id, ["accepted", "score"])
    return LabelTables(
        accepted=decisions["accepted"].to_numpy(),
        score=decisions["score"].to_numpy(),
        take=lambda rows: take_rows(decided(), rows),
        read=lambda: pa.concat_tables(decided()),
        pairs=partial(_codes, run.pool),
        truth=read_table(run.truth, TRUTH_SCHEMA) if run.truth.exists() else None,
        domain=domain,
    )


def _codes(pool: Place, pair_ids: Sequence[str]) -> pa.Table:
    """Codes of some pairs of the pool, in the given order."""
    places: dict[str, int] = {}
    start = 0
    for rows in iter_table(pool, PAIR_SCHEMA, ["pair_id"]):
        here = pc.index_in(pa.array(pair_ids), value_set=rows["pair_id"].combine_chunks())
        found = zip(pair_ids, here.to_pylist(), strict=True)
        places |= {pair: start + row for pair, row in found if row is not None}
        start += rows.num_rows
    ends = ["source_codes", "target_codes"]
    rows_of = (
        iter_table(pool, PAIR_SCHEMA, ends, at, at + 1) for at in map(places.__getitem__, pair_ids)
    )
    return pa.concat_tables(chain.from_iterable(rows_of))


def environment() -> Environment:
    """The templates of this folder; whatever is put into them is escaped."""
    made = Environment(
        loader=PackageLoader("dynamics.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "content_digest": lambda text: b64encode(sha256(text.encode()).digest()).decode(),
        "data_uri": data_uri,
        "figure": figure,
        "pretty_json": lambda tree: json.dumps(tree, indent=2, sort_keys=True),
        "stage_style": stage_style,
    }
    return made


def render(view: RunView) -> str:
    """The page as HTML text."""
    reports = [one.report for one in view.rounds]
    # Blocked rounds are shown, but the run's result is its last promoted round.
    promoted = [one for one in view.rounds if one.report.promoted] or view.rounds
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            view=view,
            first=view.rounds[0] if view.rounds else None,
            last=promoted[-1] if promoted else None,
            lead=lead([one.report for one in promoted], view.audit),
            rounds_chart=rounds_chart(reports),
            labels_chart=labels_chart(reports),
            best_of_charts=_best_of_charts(reports),
            headline=label_of(HEADLINE_VERIFIER),
            verifiers=[line.removesuffix(".") for line in descriptions().values()],
            loss_charts=_loss_charts(view.rounds),
            reliability_chart=reliability_chart(view.calibration) if view.calibration else None,
            risk_coverage_chart=risk_coverage_chart(view.calibration) if view.calibration else None,
            time_chart=time_chart({one.report.round_id: one.seconds for one in view.rounds}),
            guards=_all_keys({guard.name: guard for guard in report.guards} for report in reports),
            blocked=[report for report in reports if not report.promoted],
            kinds=_kinds(reports),
            oracle=any("eval/fdp_success" in one.metrics for one in reports),
            measured=_MEASURED if any("eval/idm_ece" in one.metrics for one in reports) else (),
            foresight=_foresight(reports),
            reasons=_all_keys(report.reasons for report in reports),
            stage_seconds=_stage_seconds(view.rounds),
            largest=max(best_of_sizes(promoted[-1].report.metrics), default=None)
            if promoted
            else None,
        )
    )


def _best_of_charts(reports: Sequence[RoundReport]) -> list[tuple[int, Markup]]:
    """The first and the last round's curves: the verifier matters more as the FDP gets better."""
    shown = {one.round_id: one.metrics for one in (*reports[:1], *reports[-1:])}
    return [(r, best_of_chart(r, m)) for r, m in shown.items() if best_of_sizes(m)]


def _loss_charts(rounds: Sequence[RoundView]) -> list[tuple[str, Markup]]:
    curves = {
        task: {one.report.round_id: one.losses.get(task, []) for one in rounds}
        for task in ("fdp", "idm")
    }
    return [
        (task.upper(), loss_chart(task, by_round))
        for task, by_round in curves.items()
        if any(by_round.values())
    ]


def _stage_seconds(rounds: Sequence[RoundView]) -> dict[str, float]:
    """Wall seconds per stage over all rounds, in the order of the loop."""
    stages = sorted(_all_keys(one.seconds for one in rounds), key=stage_order)
    return {stage: sum(one.seconds.get(stage, 0.0) for one in rounds) for stage in stages}


def _kinds(reports: Sequence[RoundReport]) -> list[str]:
    names = _all_keys(report.metrics for report in reports)
    return [name.removeprefix(_KIND_PREFIX) for name in names if name.startswith(_KIND_PREFIX)]


def _foresight(reports: Sequence[RoundReport]) -> dict[str, Any] | None:
    """The rounds that were asked about, and the columns that one of them has."""
    asked = [one for one in reports if any(name in one.metrics for name in _FORESIGHT.values())]
    names = _all_keys(report.metrics for report in asked)
    columns = {heading: name for heading, name in _FORESIGHT.items() if name in names}
    sizes = {"sources": NUM_SOURCES, "candidates": NUM_CANDIDATES, "beam": BEAM}
    steps = [step for step in range(1, ROLLOUT_STEPS + 1) if f"eval/rollout_{step}" in names]
    return {"rounds": asked, "columns": columns, "steps": steps} | sizes if asked else None


def _all_keys(mappings: Iterable[dict[str, Any]]) -> list[str]:
    """Keys of all mappings, in the order of their first appearance."""
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))
