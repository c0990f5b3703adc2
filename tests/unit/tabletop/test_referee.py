import numpy as np
import pytest

from dynamics.core.config import LoopConfig, WorldConfig
from dynamics.serving.example_scenes import example_scenes, filmed_states
from dynamics.storage.run_folder import RunFolder
from dynamics.tabletop.language import parse, say
from dynamics.tabletop.oracle import read_scenes
from dynamics.tabletop.referee import Referee, referee_of
from dynamics.tabletop.render import snapshot
from dynamics.tabletop.scene import apply, sample_action, sample_scene
from tests.runs import LocalRun
from tests.serving import picture

WORLD = WorldConfig()


@pytest.mark.parametrize("seed", range(20))
def test_what_the_rules_give_is_agreed_with_and_nothing_else(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng, WORLD.grid, WORLD.min_objects, WORLD.max_objects)
    action = sample_action(rng, scene)
    after = apply(scene, action)
    assert after is not None
    before_frame, after_frame = snapshot([scene, after], WORLD, rng)
    referee = Referee(WORLD)
    (expected,) = referee.follow(before_frame, [say(action, rng)])
    assert referee.agrees(after_frame, expected) is True
    assert referee.agrees(before_frame, expected) is False


def test_nothing_is_known_of_other_pictures_and_other_words() -> None:
    rng = np.random.default_rng(0)
    referee = Referee(WORLD)
    noise = rng.integers(0, 256, (WORLD.frame_px, WORLD.frame_px, 3), dtype=np.uint8)
    assert referee.follow(noise, ["remove the red ring"]) == [None]
    scene = sample_scene(rng, WORLD.grid, 3, 3)
    frame = snapshot([scene], WORLD, rng)[0]
    possible = say(sample_action(rng, scene), rng)
    known, unknown, after = referee.follow(frame, [possible, "make tea", possible])
    assert known is not None
    assert (unknown, after) == (None, None)
    assert referee.agrees(frame, None) is None


def test_runs_on_other_pictures_have_no_referee(small: LoopConfig) -> None:
    assert referee_of(small, small.world.frame_px) is not None
    assert referee_of(small, 512) is None
    pool = small.pool.model_copy(update={"path": "clips"})
    assert referee_of(small.model_copy(update={"pool": pool}), small.world.frame_px) is None


def test_example_scenes_are_in_no_clip_and_their_actions_are_possible(
    small: LoopConfig, local_run: LocalRun
) -> None:
    folder = RunFolder(local_run.folder)
    scenes = example_scenes(small, folder)
    assert scenes == example_scenes(small, folder)
    seen = filmed_states(folder)
    assert len(seen) > 50
    frames = np.stack([np.array(picture(scene.image)) for scene in scenes])
    for scene, state in zip(scenes, read_scenes(frames, small.world), strict=True):
        assert state.to_text() not in seen
        for sentence in scene.actions:
            action = parse(sentence)
            assert action is not None
            after = apply(state, action)
            assert after not in (None, state)
            state = after
