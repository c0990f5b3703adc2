"""Each guard lets healthy rounds pass and blocks the round that it is there for."""

from dataclasses import replace
from functools import cache

import numpy as np
import pyarrow as pa
import pytest

from dynamics.core.config import EvaluateConfig, GuardConfig, LoopConfig
from dynamics.core.domain import OpenVideo, load_domain
from dynamics.core.records import GuardResult
from dynamics.core.seeds import numpy_rng
from dynamics.evaluation.guards.leakage import Leakage
from dynamics.evaluation.guards.rules import (
    GUARDS,
    MIN_LABELS,
    GuardEvidence,
    evaluate_guards,
    figure,
)
from dynamics.evaluation.heldout import evaluate_heldout
from dynamics.evaluation.probes import Sentences, with_probes
from dynamics.inference.idm import Caption
from dynamics.tabletop.language import say
from dynamics.tabletop.scene import all_actions, sample_scene
from tests.fakes import WORLD, CellTokenizer, ScriptedFDP, ScriptedIDM, filmed, perform

CFG = LoopConfig(world=WORLD, evaluate=EvaluateConfig(best_of=()))
LIMITS = GuardConfig()
SEEDS = range(20)
CLEAN = Leakage(num_heldout=100, by_digest=0, by_hash=0, either=0)


class QuietIDM(ScriptedIDM):
    """Says nothing, at once, and is not sure of it."""

    def label(self, source_BL, target_BL, *, max_action_tokens):
        return [Caption(action="", token_logprobs=(-3.0,))] * len(source_BL)


@cache
def corpus() -> list[str]:
    """Sentences of random scenes, as many of a meaning as the world makes."""
    rng = numpy_rng("corpus")
    scenes = [sample_scene(rng, 4, 3, 4) for _ in range(50)]
    return [say(action, rng) for scene in scenes for action in all_actions(scene)]


def sentences(num: int, seed: int, only: str = "") -> list[str]:
    """Random sentences; with ``only``, of those that start with this word."""
    found = [sentence for sentence in corpus() if sentence.startswith(only)]
    return [found[row] for row in numpy_rng("sentences", seed).integers(len(found), size=num)]


def evidence(seed: int, *, copies: float = 0.0, with_truth: bool = True) -> GuardEvidence:
    """Evidence of round 0: its FDP copies this share of the pairs, the rest is correct."""
    pairs, truth = filmed(24, start=1000 * seed)
    rng = numpy_rng("copies", seed)
    correct = {action: bool(rng.random() >= copies) for action in pairs["action"].to_pylist()}
    fdp = ScriptedFDP(sure=correct.__getitem__)
    results = evaluate_heldout(pairs, truth if with_truth else None, QuietIDM(), fdp, CFG, 0, 0)
    return GuardEvidence(
        results=results,
        heldout=pairs,
        labelled_actions=sentences(400, seed),
        leakage=CLEAN,
        domain=load_domain(CFG),
    )


def labelled(
    actions: list[str], accepted: list[bool] | None = None, **other: object
) -> GuardEvidence:
    """Evidence of a round with these labels, all accepted by default."""
    parts = {
        "results": pa.table({}),
        "heldout": pa.table({}),
        "labelled_actions": sentences(400, 7),
        "leakage": CLEAN,
        "domain": load_domain(CFG),
    }
    return GuardEvidence(
        **(parts | other),
        labels=pa.table({"action": actions, "accepted": accepted or [True] * len(actions)}),
    )


def answers(confidence: float, accuracy: float, num: int = 1000) -> pa.Table:
    """An evaluation whose IDM is about this sure and correct this often."""
    rng = np.random.default_rng(0)
    correct = np.arange(num) < round(accuracy * num)
    columns = {
        "action_margins": pa.nulls(num, pa.list_(pa.float32())),
        "idm_mean_logprob": np.log(confidence * rng.uniform(0.98, 1, num)).astype(np.float32),
        "idm_exact": correct,
        "idm_correct": pa.nulls(num, pa.bool_()),
    }
    return pa.table(columns)


def drift(first: pa.Table, now: pa.Table) -> GuardResult | None:
    return GUARDS["calibration_drift"](labelled([], results=now, first_results=first), LIMITS)


@pytest.mark.parametrize("with_truth", [True, False], ids=["oracle", "codes-only"])
def test_a_copier_is_blocked_in_twenty_of_twenty_seeds(with_truth):
    rounds = [evidence(seed, copies=1.0, with_truth=with_truth) for seed in SEEDS]
    results = [GUARDS["copy_rate"](one, LIMITS) for one in rounds]
    assert [result.passed for result in results] == [False] * 20
    assert {result.value for result in results} == {1.0}


class AskedFDP:
    """Finds frames likelier by ``bonus`` after a sentence that leads there, up to some noise."""

    images = CellTokenizer()

    def __init__(self, seed: int, bonus: float, noise: float = 1.0) -> None:
        self.rng, self.bonus, self.noise = np.random.default_rng(seed), bonus, noise

    def frame_logprobs(self, source_BL, actions, target_BL):
        rows = zip(source_BL, actions, target_BL, strict=True)
        leads_B = np.array([perform(s, action) == tuple(t) for s, action, t in rows])
        return self.bonus * leads_B + self.rng.normal(0, self.noise, len(leads_B)) - 3.0


def asked(seed: int, bonus: float, noise: float = 1.0) -> GuardEvidence:
    one = evidence(seed)
    sentences = Sentences(one.labelled_actions, one.domain)
    fdp = AskedFDP(seed, bonus, noise)
    num = one.heldout.num_rows
    results = with_probes(one.results, one.heldout, fdp, sentences, CFG, 0, num)
    return replace(one, results=results)


@pytest.mark.parametrize("noise", [0.0, 1.0], ids=["exactly", "but-for-noise"])
def test_an_fdp_that_ignores_its_sentence_is_blocked_in_twenty_of_twenty_seeds(noise):
    results = [GUARDS["action_sensitivity"](asked(seed, 0.0, noise), LIMITS) for seed in SEEDS]
    assert [result.passed for result in results] == [False] * 20
    assert "train longer" in results[0].message
    few = replace(asked(0, 0.0, noise), labelled_actions=sentences(30, 0))
    message = GUARDS["action_sensitivity"](few, LIMITS).message
    assert "more labelled pairs" in message
    assert "train" not in message


def test_an_fdp_that_listens_is_blocked_in_none_of_twenty_seeds():
    results = [GUARDS["action_sensitivity"](asked(seed, 3.0), LIMITS) for seed in SEEDS]
    assert all(result.passed for result in results)


def test_a_round_that_accepts_no_label_is_blocked():
    result = GUARDS["accepted_labels"](labelled(sentences(5, 1), [False] * 5), LIMITS)
    assert (result.value, result.passed) == (0, False)
    assert GUARDS["accepted_labels"](labelled([]), LIMITS).passed is False
    assert GUARDS["accepted_labels"](labelled(sentences(5, 1)), LIMITS).passed
    assert GUARDS["accepted_labels"](evidence(0), LIMITS) is None


def test_thirty_labels_known_by_heart_show_as_overconfidence():
    result = GUARDS["overconfidence"](labelled([], results=answers(1.0, 0.078, 64)), LIMITS)
    assert not result.passed
    assert "99 % sure of its sentences for held-out pairs, and 8 % are correct" in result.message
    assert GUARDS["overconfidence"](labelled([], results=answers(0.9, 0.7)), LIMITS).passed


def test_giving_back_a_source_whose_codes_do_not_change_is_no_copy():
    one = evidence(0, copies=1.0, with_truth=False)
    column = one.heldout.column_names.index("target_codes")
    still = one.heldout.set_column(column, "target_codes", one.heldout["source_codes"])
    assert GUARDS["copy_rate"](replace(one, heldout=still), LIMITS) is None


def test_healthy_rounds_are_blocked_in_none_of_twenty_seeds():
    # 19 % copies is the most that a healthy round has ever had.
    results = [evaluate_guards(evidence(seed, copies=0.19), LIMITS) for seed in SEEDS]
    assert [result.name for result in results[0]] == ["copy_rate", "overconfidence", "leakage"]
    assert all(result.passed for one in results for result in one)


def test_healthy_labels_are_blocked_in_none_of_twenty_seeds():
    for seed in SEEDS:
        rng = numpy_rng("kept", seed)
        accepted = (rng.random(3000) < 0.8).tolist()
        one = labelled(
            sentences(3000, 100 + seed), accepted, labelled_actions=sentences(1000, seed)
        )
        for name in ("caption_collapse", "type_skew"):
            assert GUARDS[name](one, LIMITS).passed, (name, seed)


def test_one_sentence_for_everything_is_a_collapse():
    result = GUARDS["caption_collapse"](labelled(["remove the red square"] * 500), LIMITS)
    assert (result.value, result.passed) == (0.0, False)
    assert "--accept-guard caption_collapse" in result.message


def test_a_favourite_sentence_is_a_collapse_though_the_rest_is_rich():
    actions = [*sentences(850, 3), *["remove the red square"] * 150]
    result = GUARDS["caption_collapse"](labelled(actions), LIMITS)
    assert result.value > LIMITS.min_entropy_ratio
    assert not result.passed
    assert "of the labels mean" in result.message


def test_wordings_of_one_action_are_one_meaning():
    wordings = ["remove the red square", "take the red square away", "discard the red square"]
    result = GUARDS["caption_collapse"](labelled(wordings * 100), LIMITS)
    assert result.value == 0.0


def test_on_real_video_the_words_are_the_meaning_and_the_first_word_the_type():
    actions = ["Open the door.", "open  the door", "close the door", "wash a cup"] * 50
    accepted = [True, True, False, False] * 50
    one = labelled(actions, accepted, domain=OpenVideo(CFG), labelled_actions=actions)
    assert GUARDS["caption_collapse"](one, LIMITS).value == pytest.approx(1.0, abs=0.05)
    assert GUARDS["type_skew"](one, LIMITS).value == pytest.approx(0.5)


def test_few_labels_are_not_a_collapse_for_being_few():
    one = labelled(sentences(MIN_LABELS, 3), labelled_actions=sentences(4096, 4))
    assert GUARDS["caption_collapse"](one, LIMITS).value == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("name", ["caption_collapse", "type_skew"])
def test_a_handful_of_labels_says_nothing_about_their_mix(name):
    """Fourteen pairs of real clips, two of them labelled alike, are no collapse."""
    few = labelled(["remove the red square"] * (MIN_LABELS - 1))
    assert GUARDS[name](few, LIMITS) is None


def test_a_filter_that_keeps_one_type_is_a_skew():
    actions = [*sentences(300, 5), *sentences(100, 6, only="paint")]
    result = GUARDS["type_skew"](labelled(actions, [False] * 300 + [True] * 100), LIMITS)
    assert not result.passed
    assert "most for 'paint'" in result.message
    assert GUARDS["type_skew"](labelled(actions), LIMITS).value == 0.0


def test_growing_surer_without_being_right_more_often_is_a_drift():
    assert drift(answers(0.9, 0.8), answers(0.97, 0.6)).passed is False
    assert drift(answers(0.9, 0.8), answers(0.97, 0.6)).value == pytest.approx(0.27, abs=0.03)
    assert drift(answers(0.9, 0.6), answers(0.9, 0.8)).passed


def test_a_clip_of_equal_bytes_is_a_leak_and_a_few_lookalikes_are_chance():
    def leaked(by_digest: int, by_hash: int) -> GuardResult | None:
        found = Leakage(
            num_heldout=1000,
            by_digest=by_digest,
            by_hash=by_hash,
            either=max(by_digest, by_hash),
        )
        return GUARDS["leakage"](labelled([], leakage=found), LIMITS)

    assert leaked(0, LIMITS.max_leaked_pairs).passed
    assert not leaked(0, LIMITS.max_leaked_pairs + 1).passed
    assert not leaked(1, 1).passed


def test_clips_that_all_look_alike_under_a_fixed_camera_are_no_leak():
    found = Leakage(num_heldout=64, by_digest=0, by_hash=60, either=60, lookalikes=58)
    result = GUARDS["leakage"](labelled([], leakage=found), LIMITS)
    assert (result.passed, result.value) == (True, 0)
    assert "looks prove nothing here" in result.message
    copied = replace(found, by_digest=1)
    assert not GUARDS["leakage"](labelled([], leakage=copied), LIMITS).passed


def test_guards_without_evidence_say_nothing():
    assert {result.name for result in evaluate_guards(evidence(0), LIMITS)} == {
        "copy_rate",
        "overconfidence",
        "leakage",
    }
    nothing_accepted = labelled(sentences(50, 1), [False] * 50)
    assert GUARDS["type_skew"](nothing_accepted, LIMITS) is None
    assert GUARDS["caption_collapse"](labelled([]), LIMITS) is None


def test_only_a_blocked_round_tells_the_way_out():
    passed = GUARDS["copy_rate"](evidence(0), LIMITS)
    blocked = GUARDS["copy_rate"](evidence(0, copies=1.0), LIMITS)
    assert "new run_dir" not in passed.message
    assert blocked.message == (
        "copy_rate 1, limit 0.5: the FDP gives its input back on 24 of 24 held-out pairs; accept "
        "it with --accept-guard copy_rate, or train longer (train.first_steps, train.round_steps) "
        "in a new run_dir"
    )


@pytest.mark.parametrize(
    ("value", "shown"), [(9600.0, "9,600"), (0.0123456, "0.0123"), (-0.00515, "-0.00515"), (1, "1")]
)
def test_figures_of_guards_are_read_by_people(value: float, shown: str) -> None:
    assert figure(value) == shown
