from dataclasses import replace

import numpy as np
import pytest

from dynamics.report.labels import (
    LabelsView,
    LabelTables,
    calibration,
    chosen_labels,
    labels_view,
)
from dynamics.report.lead import lead
from dynamics.report.pictures import Frames
from tests.fakes import CellTokenizer
from tests.unit.report.stored import POOL, POOL_TRUTH, label_tables, pool_labels, report


def view_of(tables: LabelTables) -> LabelsView:
    chosen = chosen_labels(tables)
    return labels_view(tables, chosen, Frames(CellTokenizer(), chosen))


def test_examples_run_from_the_highest_score_to_the_lowest():
    shown = view_of(label_tables(pool_labels()))
    assert (shown.accepted.total, shown.rejected.total) == (42, 18)
    for group in (shown.accepted, shown.rejected):
        ranks = [one.rank for one in group.examples]
        assert (len(ranks), ranks[0], ranks[-1]) == (6, 1, group.total)
        scores = [one.score for one in group.examples if np.isfinite(one.score)]
        assert scores == sorted(scores, reverse=True)


def test_examples_show_their_own_pair_and_truth():
    shown = view_of(label_tables(pool_labels()))
    actions = POOL["action"].to_pylist()
    for one in shown.accepted.examples:
        assert one.true_action in actions
        assert one.correct == (one.action == one.true_action)
        assert one.confidence == pytest.approx(np.exp(one.score))
        assert one.source.uri != one.target.uri


def test_fewer_labels_than_examples_are_shown_once():
    labels = pool_labels().slice(0, 5)
    shown = view_of(label_tables(labels))
    assert [one.rank for one in shown.accepted.examples] == [1, 2]
    assert [one.rank for one in shown.rejected.examples] == [1, 2, 3]


def test_a_round_that_took_nothing_has_no_taken_examples():
    labels = pool_labels(num_wrong=0, num_empty=60)
    shown = view_of(label_tables(labels))
    assert not shown.accepted.examples
    assert {one.reason for one in shown.rejected.examples} == {"empty_action"}


def test_truth_that_is_not_known_is_none():
    shown = view_of(label_tables(pool_labels(), None))
    assert not shown.has_truth
    partly = view_of(label_tables(pool_labels(), POOL_TRUTH.slice(0, 30)))
    assert partly.has_truth
    assert None in {one.correct for one in partly.accepted.examples}


def test_calibration_counts_the_labels_with_a_score_and_a_truth():
    view = calibration(label_tables(pool_labels()), 1)
    assert view is not None
    assert view.num_labels == 57  # three sentences are empty
    assert [score.name for score in view.scores] == ["mean_logprob", "sum_logprob", "min_logprob"]
    assert [score.auroc for score in view.scores] == [1, 1, 0.5]
    assert view.scores[-1].area == pytest.approx(20 / 57)
    assert view.accepted == pytest.approx(42 / 57)
    assert view.accepted_risk == pytest.approx(5 / 42)


def test_calibration_needs_a_truth():
    assert calibration(label_tables(pool_labels(), None), 1) is None
    assert calibration(label_tables(pool_labels(), POOL_TRUTH.slice(0, 0)), 1) is None
    assert calibration(label_tables(pool_labels(num_empty=60)), 1) is None


def test_labels_that_are_all_correct_have_no_auroc():
    view = calibration(label_tables(pool_labels(num_wrong=0)), 1)
    assert view is not None
    assert {score.auroc for score in view.scores} == {None}
    assert view.accepted_risk == 0


def test_the_lead_is_three_sentences_of_the_reports_numbers():
    labels = pool_labels()
    success, quality, best_of = lead([report(0), report(1, labels)])
    metrics = report(1, labels).metrics
    assert success.startswith("After 1 round of training on the IDM's labels")
    assert f" {100 * metrics['eval/fdp_success'].value:.1f}\N{NO-BREAK SPACE}%" in success
    assert "labelled 60 pairs of the pool and the filter accepted 42" in quality
    assert f"of all labels {100 * metrics['label/accuracy'].value:.1f}" in quality
    assert "best of 4 samples" in best_of


def test_the_lead_says_only_what_was_measured():
    assert lead([]) == []
    alone = lead([report(0)])
    assert alone[0].startswith("After round 0 the FDP draws")
    assert not any("labelled" in sentence for sentence in alone)


def test_the_lead_of_real_video_does_not_guess_how_good_the_labels_are():
    unknown = replace(report(1, pool_labels()), metrics={})
    assert lead([unknown]) == [
        "In round 1 the IDM labelled 60 pairs of the pool and the filter accepted 42; how many of "
        "these labels are correct is not known."
    ]
