from dataclasses import replace

import numpy as np

from dynamics.inference.decoder import Candidates
from dynamics.inference.rollout import rollouts
from dynamics.inference.sampling import SamplingParams
from dynamics.storage.tables import codes_matrix
from dynamics.tabletop.scene import Scene
from tests.fakes import CellTokenizer, ScriptedFDP, ScriptedIDM, filmed, perform

START = Scene(3, (1, 0, 0, 0, 0, 0, 0, 0, 5))
ACTIONS = ["push the red square right", "paint the red square blue", "remove the blue square"]
SAMPLING = SamplingParams(num_samples=8, temperature=1.0)


def rollout(start_L, actions, inverse, forward, *, sampling=SAMPLING, width=1):
    options = {"verifier": "noisy_channel", "seeds": [0], "width": width}
    return rollouts(start_L[None], [actions], inverse, forward, sampling, **options)[0]


def _roll(actions: list[str], skill: float = 0.7):
    start_L = np.array(START.cells)
    return rollout(start_L, actions, ScriptedIDM(), ScriptedFDP(skill=skill))


def test_each_step_starts_from_the_frame_before():
    result = _roll(ACTIONS)
    expected = [START.cells]
    for action in ACTIONS:
        target = perform(expected[-1], action)
        assert target is not None
        expected.append(target)
    assert result.frames.tolist() == [list(cells) for cells in expected]
    assert len(result.steps) == 3


def test_a_shorter_rollout_is_a_prefix_of_the_longer_one():
    longer, shorter = _roll(ACTIONS, skill=0.2), _roll(ACTIONS[:2], skill=0.2)
    np.testing.assert_array_equal(longer.frames[:3], shorter.frames)


def test_no_action_leaves_the_given_frame():
    pairs, _ = filmed(1)
    start_L = codes_matrix(pairs, "source_codes")[0]
    result = rollout(start_L, [], ScriptedIDM(), ScriptedFDP())
    np.testing.assert_array_equal(result.frames, start_L[None])
    assert result.steps == ()


class Forked:
    """Draws two frames for the first action, the likelier one a dead end for the second."""

    def __init__(self) -> None:
        self.images = CellTokenizer()

    def generate(self, source_BL, actions, sampling, *, seeds):
        options = {
            (START.cells, "left"): [(1, *START.cells[1:]), (2, *START.cells[1:])],
            ((1, *START.cells[1:]), "right"): [(3, *START.cells[1:])] * 2,
            ((2, *START.cells[1:]), "right"): [(4, *START.cells[1:])] * 2,
        }
        likely = {1: -1.0, 2: -2.0, 3: -9.0, 4: -1.0}
        start = (9, *START.cells[1:])
        codes = np.array(
            [
                options[(START.cells if tuple(s) == start else tuple(s), a)]
                for s, a in zip(source_BL.tolist(), actions, strict=True)
            ]
        )
        logprobs = np.vectorize(likely.get)(codes[..., 0])
        return Candidates(codes, logprobs, logprobs)


class Indifferent:
    def action_logprobs(self, source_BL, target_BL, actions):
        return np.full(len(actions), -1.0)


def _forked(width: int):
    start_L = np.array((9, *START.cells[1:]))
    sampling = replace(SAMPLING, num_samples=2)
    return rollout(
        start_L, ["left", "right"], Indifferent(), Forked(), sampling=sampling, width=width
    )


def test_a_beam_takes_back_a_choice_that_leads_nowhere():
    assert [frame[0] for frame in _forked(width=1).frames] == [9, 1, 3]
    assert [frame[0] for frame in _forked(width=2).frames] == [9, 2, 4]


def test_prefixes_with_one_frame_are_one_prefix():
    last = _forked(width=4).steps[-1]
    assert sorted(frame[0] for frame in last.frames) == [3, 4]
    assert last.totals.tolist() == sorted(last.totals.tolist(), reverse=True)


def test_a_beam_of_one_draws_what_no_beam_draws():
    plain, beamed = _roll(ACTIONS, skill=0.3), _roll(ACTIONS, skill=0.3)
    np.testing.assert_array_equal(plain.frames, beamed.frames)
    for step in beamed.steps:
        assert step.chosen.tolist() == step.prediction.chosen.tolist()


def test_rollouts_side_by_side_are_those_alone():
    pairs, _ = filmed(5)
    starts = codes_matrix(pairs, "source_codes")
    actions = [[action, *ACTIONS] for action in pairs["action"].to_pylist()]
    models = ScriptedIDM(), ScriptedFDP(skill=0.4)
    options = {"verifier": "noisy_channel", "width": 3}
    together = rollouts(starts, actions, *models, SAMPLING, seeds=range(5), **options)
    for row, found in enumerate(together):
        at = slice(row, row + 1)
        (alone,) = rollouts(starts[at], actions[at], *models, SAMPLING, seeds=[row], **options)
        np.testing.assert_array_equal(found.frames, alone.frames)
        assert [len(step.frames) for step in found.steps] == [len(s.frames) for s in alone.steps]
