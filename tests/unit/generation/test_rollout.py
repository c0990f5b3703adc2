import numpy as np

from dynamics.generation.rollout import rollout
from dynamics.tables import codes_matrix
from dynamics.world.scene import Scene
from tests.fakes import ScriptedFDP, ScriptedIDM, filmed, perform

START = Scene(3, (1, 0, 0, 0, 0, 0, 0, 0, 5))
ACTIONS = ["push the red square right", "paint the red square blue", "remove the blue square"]
OPTIONS = {"verifier": "noisy_channel", "num_samples": 8, "temperature": 1.0, "seed": 0}


def _roll(actions: list[str], skill: float = 0.7):
    start_L = np.array(START.cells)
    return rollout(start_L, actions, ScriptedIDM(), ScriptedFDP(skill=skill), **OPTIONS)


def test_each_step_starts_from_the_frame_before():
    result = _roll(ACTIONS)
    expected = [START.cells]
    for action in ACTIONS:
        after = perform(expected[-1], action)
        assert after is not None
        expected.append(after)
    assert result.frames.tolist() == [list(cells) for cells in expected]
    assert len(result.steps) == 3


def test_a_shorter_rollout_is_a_prefix_of_the_longer_one():
    longer, shorter = _roll(ACTIONS, skill=0.2), _roll(ACTIONS[:2], skill=0.2)
    np.testing.assert_array_equal(longer.frames[:3], shorter.frames)


def test_no_action_leaves_the_given_frame():
    pairs, _ = filmed(1)
    start_L = codes_matrix(pairs, "source_codes")[0]
    result = rollout(start_L, [], ScriptedIDM(), ScriptedFDP(), **OPTIONS)
    np.testing.assert_array_equal(result.frames, start_L[None])
    assert result.steps == ()
