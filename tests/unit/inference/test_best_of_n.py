import numpy as np
import pytest

from dynamics.core.config import ServeConfig
from dynamics.inference.best_of_n import best_of_n, gather_evidence
from dynamics.inference.decoder import Candidates
from dynamics.inference.sampling import SamplingParams
from dynamics.inference.verifiers import (
    VERIFIERS,
    Evidence,
    choose,
    descriptions,
    label_of,
    weighted,
)
from dynamics.serving.schemas import PredictRequest
from dynamics.storage.tables import codes_matrix
from tests.fakes import ScriptedFDP, ScriptedIDM, filmed

VERIFIER_NAMES = tuple(VERIFIERS)


def _sources(num_pairs: int):
    pairs, _ = filmed(num_pairs)
    return codes_matrix(pairs, "source_codes"), pairs["action"].to_pylist(), pairs


def _best_of(num_samples: int, verifier: str = "noisy_channel", num_pairs: int = 40):
    source_BL, actions, pairs = _sources(num_pairs)
    prediction = best_of_n(
        source_BL,
        actions,
        ScriptedIDM(),
        ScriptedFDP(skill=0.4),
        SamplingParams(num_samples=num_samples, temperature=1.0),
        verifier=verifier,
        seeds=range(num_pairs),
    )
    return prediction, (prediction.best == codes_matrix(pairs, "target_codes")).all(axis=1)


@pytest.mark.parametrize("verifier", VERIFIER_NAMES)
def test_every_verifier_is_configurable_and_described(verifier: str):
    assert ServeConfig(verifier=verifier).verifier == verifier
    label, _, description = descriptions()[verifier].partition(": ")
    assert label == label_of(verifier)
    assert description.endswith(".")


def test_the_service_describes_every_verifier_that_it_takes():
    offered = PredictRequest.model_json_schema()["properties"]["verifier"]["anyOf"][0]
    assert offered["enum"] == list(VERIFIERS)
    assert all(line in offered["description"] for line in descriptions().values())


def test_the_weighted_sum_of_one_is_the_noisy_channel():
    evidence = Evidence(
        action=np.array([[-1.5, -0.3]]),
        action_of_copy=np.array([-6.0]),
        frame=np.array([[-9.1, -2.7]]),
    )
    assert (weighted(1.0)(evidence) == VERIFIERS["noisy_channel"](evidence)).all()
    assert (weighted(0.0)(evidence) == VERIFIERS["fdp"](evidence)).all()


@pytest.mark.parametrize("verifier", VERIFIER_NAMES)
def test_every_verifier_returns_one_finite_score_per_candidate(verifier: str):
    prediction, _ = _best_of(5, verifier)
    assert prediction.scores.shape == (40, 5)
    assert np.isfinite(prediction.scores).all()


@pytest.mark.parametrize("verifier", sorted(set(VERIFIERS) - {"fdp"}))
def test_verifiers_that_ask_the_idm_do_not_reward_a_copy_over_the_right_frame(verifier: str):
    correct, copy = -0.5, -6.0
    evidence = Evidence(
        action=np.array([[copy, correct]]),
        action_of_copy=np.array([copy]),
        frame=np.array([[-3.0, -3.0]]),
    )
    assert VERIFIERS[verifier](evidence).argmax() == 1


def test_contrast_is_zero_for_a_copy():
    source_BL, actions, _ = _sources(3)
    likely = np.full((3, 1), -3.0)
    copies = Candidates(source_BL[:, None], likely, likely)
    evidence = gather_evidence(source_BL, actions, copies, ScriptedIDM())
    assert VERIFIERS["idm_contrast"](evidence).tolist() == [[0.0]] * 3


def test_noisy_channel_breaks_what_the_idm_cannot_tell_apart():
    evidence = Evidence(
        action=np.array([[-1.0, -1.0]]),
        action_of_copy=np.array([-6.0]),
        frame=np.array([[-9.0, -2.0]]),
    )
    assert choose(VERIFIERS["idm"](evidence)).tolist() == [0]
    assert choose(VERIFIERS["noisy_channel"](evidence)).tolist() == [1]


def test_best_of_1_is_plain_sampling():
    prediction, _ = _best_of(1)
    assert prediction.chosen.tolist() == [0] * 40
    np.testing.assert_array_equal(prediction.best, prediction.candidates.codes[:, 0])


def test_best_of_n_finds_the_right_frame_whenever_it_was_drawn():
    prediction, correct = _best_of(8)
    _, correct_of_1 = _best_of(1)
    copies = (prediction.candidates.codes == _sources(40)[0][:, None]).all(axis=(1, 2))
    assert correct[~copies].all()
    assert correct.mean() > correct_of_1.mean() + 0.3


def test_each_distinct_frame_is_scored_once():
    source_BL, actions, pairs = _sources(1)
    target_L = codes_matrix(pairs, "target_codes")[0]
    drawn = np.stack([target_L, source_BL[0], target_L, target_L])[None]
    candidates = Candidates(drawn, np.zeros((1, 4)), np.zeros((1, 4)))
    inverse = ScriptedIDM()
    evidence = gather_evidence(source_BL, actions, candidates, inverse)
    assert len(inverse.scored) == len(set(inverse.scored)) == 2
    assert evidence.action.tolist() == [[-0.5, -6.0, -0.5, -0.5]]
    assert evidence.action_of_copy.tolist() == [-6.0]


def test_equal_frames_of_different_sources_are_scored_apart():
    source_BL, actions, pairs = _sources(2)
    shared = codes_matrix(pairs, "target_codes")[0]
    zeros = np.zeros((2, 1))
    candidates = Candidates(np.stack([shared, shared])[:, None], zeros, zeros)
    evidence = gather_evidence(source_BL, actions, candidates, ScriptedIDM())
    assert evidence.action.tolist() == [[-0.5], [-6.0]]


def test_a_batch_scores_like_its_rows_alone():
    source_BL, actions, _ = _sources(6)
    forward, inverse = ScriptedFDP(), ScriptedIDM()
    options = {
        "sampling": SamplingParams(num_samples=4, temperature=1.0),
        "verifier": "noisy_channel",
    }
    together = best_of_n(source_BL, actions, inverse, forward, seeds=range(6), **options)
    for row in range(6):
        alone = best_of_n(
            source_BL[row : row + 1], actions[row : row + 1], inverse, forward,
            seeds=[row], **options,
        )  # fmt: skip
        np.testing.assert_array_equal(alone.scores[0], together.scores[row])


def test_ties_take_the_first_and_nan_never_wins():
    scores_BN = np.array([[1.0, 1.0, 0.0], [np.nan, -5.0, -7.0], [np.nan, np.nan, np.nan]])
    assert choose(scores_BN).tolist() == [0, 1, 0]
