import numpy as np
import pyarrow as pa
import pytest

from dynamics.core.config import EvaluateConfig, LoopConfig
from dynamics.core.domain import load_domain
from dynamics.core.records import LABEL_SCHEMA
from dynamics.evaluation.calibration import confidence
from dynamics.evaluation.heldout import evaluate_heldout
from dynamics.evaluation.label_quality import (
    CONFIDENCE,
    correct_labels,
    label_accuracy,
    scored_labels,
)
from dynamics.evaluation.metrics import best_of_sizes, summarise
from dynamics.labelling.confidence import SCORES
from tests.fakes import WORLD, ScriptedFDP, ScriptedIDM, filmed

PAIRS, TRUTH = filmed(200)
CFG = LoopConfig(world=WORLD, evaluate=EvaluateConfig(best_of=(1, 8)))


def _items(truth=TRUTH, with_best_of=100, sure=lambda action: "paint" not in action):
    fdp = ScriptedFDP(skill=0.4, sure=sure)
    return evaluate_heldout(PAIRS, truth, ScriptedIDM(), fdp, CFG, 1, with_best_of)


def _labels(correct: list[bool]):
    actions = PAIRS["action"].to_pylist()
    return pa.table(
        {
            "pair_id": PAIRS["pair_id"][: len(correct)],
            "action": [actions[n] if good else "" for n, good in enumerate(correct)],
        }
    )


def _label_accuracy(correct: list[bool], accepted: list[bool], truth: pa.Table):
    verdicts = correct_labels(_labels(correct), truth, load_domain(CFG))
    return label_accuracy(np.array(accepted), verdicts)


def test_metrics_are_the_means_of_their_columns():
    items = _items()
    metrics = summarise(items)
    assert metrics["eval/fdp_success"].value == pytest.approx(
        np.mean(items["fdp_greedy_success"].to_pylist())
    )
    assert metrics["eval/copy_rate"].value == pytest.approx(np.mean(items["fdp_copy"].to_pylist()))
    assert metrics["eval/idm_accuracy"].value == 1.0
    assert metrics["eval/best_of_8"].num_items == 100
    assert metrics["eval/fdp_success"].num_items == 200


def test_metric_names_are_flat_and_complete():
    assert set(summarise(_items())) >= {
        "eval/fdp_success",
        "eval/fdp_sample_success",
        "eval/copy_rate",
        "eval/idm_accuracy",
        "eval/idm_exact",
        "eval/tokenizer_ceiling",
        "eval/best_of_greedy",
        "eval/best_of_1",
        "eval/best_of_8",
        "eval/idm_best_of_8",
        "eval/oracle_best_of_8",
        "eval/fdp_success_move",
    }


def test_greedy_is_compared_on_the_pairs_of_the_curve():
    items = _items()
    greedy = items["fdp_greedy_success"].to_pylist()[:100]
    assert summarise(items)["eval/best_of_greedy"].value == pytest.approx(np.mean(greedy))


def test_action_types_partition_the_pairs():
    metrics = summarise(_items(sure=lambda action: "slide" not in action and "glide" not in action))
    by_kind = {n: m for n, m in metrics.items() if n.startswith("eval/fdp_success_")}
    assert sum(metric.num_items for metric in by_kind.values()) == 200
    assert by_kind["eval/fdp_success_slide"].value == 0.0
    assert by_kind["eval/fdp_success_remove"].value == 1.0


def test_what_was_not_measured_is_left_out():
    metrics = summarise(_items(truth=None, with_best_of=0))
    assert set(metrics) == {
        "eval/idm_exact",
        "eval/idm_ece",
        "eval/code_accuracy",
        "eval/code_accuracy_copy",
        "eval/code_accuracy_changed",
    }


def test_copying_and_changed_codes_stand_beside_the_accuracy_of_codes():
    metrics = summarise(_items(truth=None, with_best_of=0))
    source, target, drawn = (
        np.array(column.to_pylist())
        for column in (PAIRS["source_codes"], PAIRS["target_codes"], _items()["greedy_codes"])
    )
    expected = {
        "eval/code_accuracy": (drawn == target).mean(),
        "eval/code_accuracy_copy": (source == target).mean(),
        "eval/code_accuracy_changed": np.mean(
            [(d == t)[s != t].mean() for s, t, d in zip(source, target, drawn, strict=True)]
        ),
    }
    assert {name: metrics[name].value for name in expected} == pytest.approx(expected, abs=1e-6)


def test_calibration_error_of_the_report_equals_an_independent_computation():
    rng = np.random.default_rng(0)
    logprob = np.log(rng.uniform(0.2, 1, 200)).astype(np.float32)
    exact = rng.random(200) < 0.5
    items = _items(truth=None, with_best_of=0)
    for name, values in (("idm_mean_logprob", logprob), ("idm_exact", exact)):
        place = items.column_names.index(name)
        items = items.set_column(place, items.schema.field(name), pa.array(values))
    sure = np.exp(logprob.astype(np.float64))
    order = np.argsort(sure)
    error = sum(
        25 / 200 * abs(sure[rows].mean() - exact[rows].mean()) for rows in np.split(order, 8)
    )
    assert summarise(items)["eval/idm_ece"].value == pytest.approx(error, abs=1e-6)


def test_summary_is_the_same_every_time():
    assert summarise(_items()) == summarise(_items())


def test_best_of_sizes_come_from_the_metrics():
    assert best_of_sizes(summarise(_items())) == [1, 8]
    assert best_of_sizes({}) == []


def test_label_accuracy_before_and_after_the_filter():
    metrics = _label_accuracy([True, True, False, False], [True, True, True, False], TRUTH)
    assert metrics["label/accuracy"].value == 0.5
    assert metrics["label/accuracy_accepted"].value == pytest.approx(2 / 3)
    assert metrics["label/accepted_fraction"].value == 0.75


def test_pairs_that_the_truth_leaves_out_do_not_count():
    metrics = _label_accuracy([True, False, False], [True, True, True], TRUTH.slice(1))
    assert metrics["label/accuracy"].num_items == 2
    assert metrics["label/accuracy"].value == 0.0


def test_scores_are_compared_on_labels_with_a_truth_and_every_score():
    labels = _labels([True, False, True, True])
    scores = [{"a": -1.0, "b": 0.5}, {"a": -2.0, "b": 0.1}, {"a": -3.0}, {"a": -4.0, "b": 0.9}]
    column = pa.array(scores, LABEL_SCHEMA.field("scores").type)
    found = scored_labels(labels.append_column("scores", column), TRUTH.slice(1), load_domain(CFG))
    assert found.rows.tolist() == [False, True, False, True]
    assert found.correct.tolist() == [0, 1]
    assert {name: len(values) for name, values in found.scores.items()} == {"a": 2, "b": 2}
    assert np.array_equal(found.verdicts, [np.nan, 0, 1, 1], equal_nan=True)


def test_a_confidence_is_a_probability_whatever_the_score():
    assert SCORES[CONFIDENCE].scale == "log_probability"
    assert confidence(np.log([0.25, 1.1])).tolist() == pytest.approx([0.25, 1])
    assert confidence(np.array([0.75, 1.125]), "probability").tolist() == [0.75, 1]
    assert np.isnan(confidence(np.array([np.nan]))).all()


def test_real_video_has_no_label_accuracy_but_an_accepted_fraction():
    found = label_accuracy(np.array([False, False]), None)
    assert set(found) == {"label/accepted_fraction"}
    accepted_nothing = _label_accuracy([True, False], [False, False], TRUTH)
    assert "label/accuracy_accepted" not in accepted_nothing
