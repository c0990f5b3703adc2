import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dynamics.core.config import (
    EvaluateConfig,
    LabelledConfig,
    LoopConfig,
    ModelConfig,
    TrainConfig,
)
from dynamics.core.errors import UserError
from dynamics.core.records import PAIR_SCHEMA, TRANSITION_SCHEMA, TRUTH_SCHEMA, DataRefs
from dynamics.evaluation import controls
from dynamics.evaluation.comparison import ControlReport, compare
from dynamics.evaluation.controls import control_steps, label_truly, run_controls
from dynamics.evaluation.heldout import evaluate_heldout, results_schema
from dynamics.evaluation.metrics import summarise
from dynamics.report.table import control_line, control_table
from dynamics.storage.tables import dataset_ref, write_table
from dynamics.training.batches import FitJob
from tests.fakes import WORLD, ScriptedFDP, ScriptedIDM, filmed

CFG = LoopConfig(
    world=WORLD,
    labelled=LabelledConfig(num_pairs=20, num_heldout=200),
    evaluate=EvaluateConfig(best_of=(1, 2)),
    train=TrainConfig(first_steps=5, round_steps=7),
)
HELDOUT, HELDOUT_TRUTH = filmed(200)


def _items(success: Sequence[bool]) -> pa.Table:
    """An evaluation in which FDP and IDM succeed on the same, given pairs."""
    correct = {
        action for action, ok in zip(HELDOUT["action"].to_pylist(), success, strict=True) if ok
    }
    fdp = ScriptedFDP(sure=lambda action: action in correct)
    return evaluate_heldout(HELDOUT, HELDOUT_TRUTH, ScriptedIDM(), fdp, CFG, 3, 0)


@cache
def _outcomes(labelled: float, loop: float, true: float) -> dict[str, pa.Table]:
    luck = np.random.default_rng(0).random(200)
    rates = {"labelled_only": labelled, "round": loop, "true_labels": true}
    return {arm: _items(luck < rate) for arm, rate in rates.items()}


def test_gap_closed_is_the_share_of_the_way_to_true_labels():
    items = _outcomes(0.3, 0.6, 0.8)
    report = compare(items, round_id=3, steps=600, num_pool=12_000)
    labelled, loop, true = (
        report.arms[arm]["eval/fdp_success"].value
        for arm in ("labelled_only", "round", "true_labels")
    )
    assert report.gain["eval/fdp_success"].value == pytest.approx(loop - labelled)
    closed = report.gap_closed["eval/fdp_success"]
    assert closed.value == pytest.approx((loop - labelled) / (true - labelled))
    assert closed.low < closed.value < closed.high


def test_without_a_gap_none_is_claimed_to_be_closed():
    report = compare(_outcomes(0.5, 0.5, 0.5), round_id=3, steps=600, num_pool=1)
    assert report.gap_closed == {}
    assert report.gain["eval/fdp_success"].value == 0.0


def test_controls_on_other_pairs_are_refused():
    items = _outcomes(0.3, 0.6, 0.8)
    items = {**items, "labelled_only": items["labelled_only"].slice(1)}
    with pytest.raises(ValueError, match="other pairs"):
        compare(items, round_id=3, steps=600, num_pool=1)


def test_order_of_rows_does_not_matter():
    items = _outcomes(0.3, 0.6, 0.8)
    shuffled = {**items, "round": items["round"].take(list(reversed(range(200))))}
    whole, other = (compare(one, 3, 600, 1) for one in (items, shuffled))
    assert whole == other


def test_report_survives_json():
    report = compare(_outcomes(0.3, 0.6, 0.8), round_id=3, steps=600, num_pool=1)
    assert ControlReport.from_json(json.loads(json.dumps(report.to_json()))) == report


def test_controls_train_as_long_as_the_round_did():
    assert control_steps(CFG.train, 3) == 7
    assert control_steps(CFG.train, 0) == 5
    onwards = CFG.train.model_copy(update={"init": "previous"})
    assert control_steps(onwards, 3) == 5 + 3 * 7


def test_a_task_with_steps_of_its_own_has_controls_with_as_many():
    train = TrainConfig(first_steps=5, round_steps=7, fdp={"round_steps": 30})
    assert [control_steps(train.of(task), 3) for task in ("idm", "fdp")] == [7, 30]


def test_pool_pairs_get_their_own_true_action():
    pairs, truth = filmed(10)
    pool = pairs.select(PAIR_SCHEMA.names)
    shuffled = truth.take([7, 2, 9, 0])
    labelled = label_truly(pool, shuffled)
    assert labelled.column_names == TRANSITION_SCHEMA.names
    assert labelled["pair_id"].to_pylist() == [f"pair-{n:04d}" for n in (0, 2, 7, 9)]
    actions = dict(zip(pairs["pair_id"].to_pylist(), pairs["action"].to_pylist(), strict=True))
    assert labelled["action"].to_pylist() == [actions[p] for p in labelled["pair_id"].to_pylist()]
    assert set(labelled["origin"].to_pylist()) == {"truth"}


class Lab:
    """A run folder whose adapters are never loaded: the models are scripted by arm."""

    def __init__(self, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run_dir, self.jobs = run_dir, list[FitJob]()
        pairs, truth = filmed(80, start=1000)
        data, seed, pool = run_dir / "data", pairs.slice(0, 20), pairs.slice(20)
        everything = pa.concat_tables([truth.slice(20), HELDOUT_TRUTH])
        self.data = DataRefs(
            labelled=write_table(data / "labelled.parquet", seed, TRANSITION_SCHEMA),
            pool=write_table(data / "pool.parquet", pool.select(PAIR_SCHEMA.names), PAIR_SCHEMA),
            heldout=write_table(data / "heldout.parquet", HELDOUT, TRANSITION_SCHEMA),
            truth=write_table(data / "truth.parquet", everything, TRUTH_SCHEMA),
        )
        self.finish_round(_items([n % 2 == 0 for n in range(200)]))
        monkeypatch.setattr(controls, "model_ref", lambda base, idm, fdp: fdp)
        monkeypatch.setattr(controls, "load_pair", self._load)

    def finish_round(self, items: pa.Table) -> None:
        path = self.run_dir / "rounds/round-03/results.parquet"
        write_table(path, items, results_schema(CFG.evaluate.best_of))

    def _load(self, fdp: Path, model: ModelConfig) -> tuple[ScriptedIDM, ScriptedFDP]:
        good = fdp.parent.name == "true_labels"
        return ScriptedIDM(), ScriptedFDP(sure=lambda action: good or "red" in action)

    def note(self, jobs: Sequence[FitJob], progress: object) -> None:
        self.jobs += jobs

    def run(self) -> ControlReport:
        return run_controls(CFG, self.run_dir, self.data, 3, run_fits=self.note)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    return Lab(tmp_path, monkeypatch)


def test_controls_train_on_the_right_pairs_for_the_right_steps(lab: Lab):
    report = lab.run()
    rows = [dataset_ref(job.transitions).num_rows for job in lab.jobs]
    assert [(job.out.parent.name, job.task) for job in lab.jobs] == [
        ("labelled_only", "idm"),
        ("labelled_only", "fdp"),
        ("true_labels", "idm"),
        ("true_labels", "fdp"),
    ]
    assert rows == [20, 20, 80, 80]
    assert {job.steps for job in lab.jobs} == {7}
    assert len({job.seed for job in lab.jobs}) == 4
    assert {job.init_from for job in lab.jobs} == {None}
    assert report.num_pool == 60
    assert report.arms["true_labels"]["eval/fdp_success"].value == 1.0
    assert report.arms["round"] == {
        name: value
        for name, value in summarise(_items([n % 2 == 0 for n in range(200)])).items()
        if "best_of" not in name
    }


def test_running_controls_again_gives_the_same_report(lab: Lab):
    first = lab.run()
    path = lab.run_dir / "controls/round-03/report.json"
    written = path.read_bytes()
    assert lab.run() == first
    assert path.read_bytes() == written


def test_controls_need_a_finished_round(lab: Lab):
    with pytest.raises(UserError, match="finish round 5 first"):
        run_controls(CFG, lab.run_dir, lab.data, 5, run_fits=lab.note)
    assert lab.jobs == []


def test_real_video_is_held_against_the_labelled_set_alone(lab: Lab):
    lab.data = replace(lab.data, truth=None)
    blind = evaluate_heldout(HELDOUT, None, ScriptedIDM(), ScriptedFDP(), CFG, 3, 0)
    lab.finish_round(blind)
    report = lab.run()
    assert [(job.out.parent.name, job.task) for job in lab.jobs] == [
        ("labelled_only", "idm"),
        ("labelled_only", "fdp"),
    ]
    assert list(report.arms) == ["labelled_only", "round"]
    labelled, loop = (arm["eval/code_accuracy_changed"].value for arm in report.arms.values())
    assert set(report.gain) == {"eval/code_accuracy_changed", "eval/idm_exact"}
    assert report.gain["eval/code_accuracy_changed"].value == pytest.approx(loop - labelled)
    assert report.gap_closed == {}
    headings = [column.header for column in control_table(report).columns]
    assert headings == ["metric", "labelled set only", "round 3", "gain"]


@pytest.mark.parametrize(
    ("labelled", "verdict"),
    [(0.3, "the rounds help"), (0.6, "the rounds bring nothing"), (0.8, "the rounds harm")],
)
def test_the_last_line_says_whether_the_rounds_help(labelled: float, verdict: str):
    report = compare(_outcomes(labelled, 0.6, 0.9), round_id=3, steps=600, num_pool=1)
    gain = 100 * report.gain["eval/fdp_success"].value
    line = control_line(report)
    assert line.startswith(verdict)
    assert f"round 3 is {gain:+.1f} points [" in line
