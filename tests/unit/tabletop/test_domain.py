import numpy as np
import pytest

from dynamics.core.config import LoopConfig
from dynamics.core.domain import same_action
from dynamics.data.video.filmed import filmed_states
from dynamics.serving.sessions import expected_states
from dynamics.storage.run_folder import RunFolder
from dynamics.tabletop.domain import Tabletop
from dynamics.tabletop.language import parse, say
from dynamics.tabletop.oracle import read_scenes
from dynamics.tabletop.render import snapshot
from dynamics.tabletop.scene import Scene, apply, sample_action, sample_scene
from tests.runs import LocalRun

CFG = LoopConfig()
WORLD = CFG.world
TABLETOP = Tabletop(CFG)


def test_wordings_of_one_action_have_one_meaning() -> None:
    scene = sample_scene(np.random.default_rng(0), 3, 2, 3)
    action = sample_action(np.random.default_rng(0), scene, min_objects=1)
    sentences = {say(action, np.random.default_rng(number)) for number in range(20)}
    assert len(sentences) > 1
    assert len({TABLETOP.meaning(sentence) for sentence in sentences}) == 1
    assert TABLETOP.meaning("nonsense words") == ""


def test_another_wording_is_the_same_action_and_another_action_may_have_the_same_effect() -> None:
    assert same_action(TABLETOP, "nudge the red square right", "push the red square right")
    assert not same_action(TABLETOP, "slide the red square down", "push the red square down")
    assert same_action(TABLETOP, "gibberish", "gibberish")
    assert not same_action(TABLETOP, "gibberish", "nonsense")
    state = Scene(3, (0, 0, 0, 1, 0, 0, 5, 0, 0)).to_text()
    slid, pushed = (TABLETOP.outcome(f"{verb} the red square up", state) for verb in SAME_EFFECT)
    assert slid == pushed is not None
    assert TABLETOP.outcome("gibberish", state) is None
    assert TABLETOP.outcome("remove the blue ring", state) is None


SAME_EFFECT = ("slide", "push")


def test_the_kind_of_an_action_is_its_type() -> None:
    assert TABLETOP.kind("swap the red square with the blue ring") == "swap"
    assert TABLETOP.kind("gibberish") == ""


def test_the_picture_of_a_state_shows_it() -> None:
    scenes = [sample_scene(np.random.default_rng(seed), WORLD.grid, 3, 4) for seed in range(20)]
    for state in (scene.to_text() for scene in scenes):
        assert TABLETOP.recognised(TABLETOP.picture(state)) == state


@pytest.mark.parametrize("seed", range(20))
def test_what_the_rules_give_is_what_the_next_frame_shows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng, WORLD.grid, WORLD.min_objects, WORLD.max_objects)
    action = sample_action(rng, scene)
    after = apply(scene, action)
    assert after is not None
    before_frame, after_frame = frames = snapshot([scene, after], WORLD, rng)
    assert TABLETOP.recognised(before_frame) == scene.to_text()
    (expected,) = expected_states(TABLETOP, before_frame, [say(action, rng)])
    assert TABLETOP.states(frames) == [scene.to_text(), expected]
    assert TABLETOP.recognised(after_frame) == expected != scene.to_text()


def test_nothing_is_known_of_other_pictures_and_other_words() -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (WORLD.frame_px, WORLD.frame_px, 3), dtype=np.uint8)
    assert expected_states(TABLETOP, noise, ["remove the red ring"]) == [None]
    scene = sample_scene(rng, WORLD.grid, 3, 3)
    frame = snapshot([scene], WORLD, rng)[0]
    possible = say(sample_action(rng, scene), rng)
    known, unknown, after = expected_states(TABLETOP, frame, [possible, "make tea", possible])
    assert known is not None
    assert (unknown, after) == (None, None)


def test_frames_of_another_size_are_unknown() -> None:
    large = np.zeros((2, 512, 512, 3), np.uint8)
    assert TABLETOP.states(large) == [None, None]
    assert TABLETOP.recognised(large[0]) is None


def test_example_scenes_are_in_no_clip_and_their_actions_are_possible(
    small: LoopConfig, local_run: LocalRun
) -> None:
    data = RunFolder(local_run.folder).data
    scenes, again = (Tabletop(small).examples(data) for _ in range(2))
    frames = np.stack([scene.frame for scene in scenes])
    assert np.array_equal(frames, np.stack([scene.frame for scene in again]))
    assert [scene.actions for scene in scenes] == [scene.actions for scene in again]
    seen = filmed_states(data)
    assert len(seen) > 50
    for scene, state in zip(scenes, read_scenes(frames, small.world), strict=True):
        assert state.to_text() not in seen
        for sentence in scene.actions:
            action = parse(sentence)
            assert action is not None
            after = apply(state, action)
            assert after not in (None, state)
            state = after
