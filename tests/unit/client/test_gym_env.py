"""The environment over real HTTP; the service behind it draws by the tabletop's rules."""

import subprocess
import sys
import warnings
from collections.abc import Iterator

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from PIL import Image

from dynamics.client.gym_env import REFUSED_NATS, RolloutEnv, verifier_score
from dynamics.core.errors import UserError
from tests.fake_service import WORLD, Behaviour, build, running


@pytest.fixture(scope="module")
def behaviour() -> Behaviour:
    return Behaviour()


@pytest.fixture(scope="module")
def url(behaviour: Behaviour) -> Iterator[str]:
    with running(build(behaviour)) as address:
        yield address


@pytest.fixture
def env(url: str) -> Iterator[RolloutEnv]:
    one = RolloutEnv(url, n=2, max_steps=3, render_mode="rgb_array")
    yield one
    one.close()


def test_gymnasium_finds_nothing_wrong(url):
    made = gymnasium.make("dynamics/Rollout-v0", url=url, n=2, render_mode="rgb_array")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(made.unwrapped)
    made.close()


def test_an_episode_shows_what_was_drawn_and_ends_by_its_length(env):
    frame, info = env.reset(seed=1)
    assert frame.shape == (WORLD.frame_px, WORLD.frame_px, 3)
    assert env.observation_space.contains(frame)
    assert info["actions"]
    assert info["scores"].shape == (0,)
    for count, action in enumerate(info["actions"][:3], start=1):
        assert env.action_space.contains(action)
        frame, reward, terminated, truncated, info = env.step(action)
        assert (reward, terminated, truncated) == (0.0, False, count == 3)
        assert info["scores"].shape == (2,)
        assert info["scores"].argmax() == info["chosen"]
        assert info["matches_ground_truth"] in (True, False)
        np.testing.assert_array_equal(env.render(), frame)


def test_equal_seeds_give_equal_episodes_and_others_differ(env):
    def play(seed: int) -> bytes:
        frame, info = env.reset(seed=seed)
        return frame.tobytes() + b"".join(env.step(one)[0].tobytes() for one in info["actions"])

    assert play(5) == play(5)
    assert len({play(seed) for seed in range(6)}) > 1
    first, second = env.reset(seed=5)[1], env.reset()[1]
    assert not np.array_equal(first["frame"], second["frame"])


def test_what_the_model_cannot_read_changes_nothing_and_is_counted(env):
    frame, _ = env.reset(seed=1)
    for count, nonsense in enumerate(["xq7 !", "   "], start=1):
        after, _, _, _, info = env.step(nonsense)
        np.testing.assert_array_equal(after, frame)
        assert info["num_refused"] == count
        assert "refused (422)" in info["refused"]
        assert info["chosen"] == -1
    assert env.reset()[1]["num_refused"] == 0


def test_the_reward_is_a_function_of_the_info(url):
    env = RolloutEnv(url, reward_fn=verifier_score)
    _, info = env.reset(seed=1)
    _, reward, _, _, info = env.step(info["actions"][0])
    assert reward == max(info["scores"])
    assert env.step("nonsense")[1] == REFUSED_NATS
    env.close()


def test_an_episode_may_begin_with_any_picture(env, tmp_path):
    path = tmp_path / "photo.jpg"
    Image.new("RGB", (300, 200), (10, 200, 30)).save(path)
    frame, info = env.reset(options={"image": path})
    assert frame.shape == (WORLD.frame_px, WORLD.frame_px, 3)
    assert abs(frame.astype(int) - [10, 200, 30]).max() < 8
    assert info["actions"] == ()
    again, _ = env.reset(options={"image": frame})
    np.testing.assert_array_equal(again, frame)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"n": 17}, "draws 1 to 16"),
        ({"temperature": 0}, "temperature=0"),
        ({"verifier": "oracle"}, "the service has idm, idm_contrast, fdp, noisy_channel"),
        ({"round": 7}, "the service has 0, 1, 2"),
        ({"max_steps": 0}, "at least one step"),
    ],
)
def test_options_are_refused_before_the_first_episode(url, wrong, why):
    with pytest.raises(UserError, match=why):
        RolloutEnv(url, **wrong)


def test_a_step_before_the_reset_is_refused(env):
    with pytest.raises(UserError, match="call reset"):
        env.step("push")


def test_a_wrong_key_is_no_refused_action(env, behaviour):
    _, info = env.reset(seed=1)
    behaviour.api_key = "changed meanwhile"
    try:
        with pytest.raises(UserError, match="needs an API key"):
            env.step(info["actions"][0])
    finally:
        behaviour.api_key = None


def test_several_environments_step_together(url):
    made = [lambda: RolloutEnv(url, n=1) for _ in range(2)]
    envs = gymnasium.vector.SyncVectorEnv(made)
    frames, info = envs.reset(seed=3)
    assert frames.shape == (2, WORLD.frame_px, WORLD.frame_px, 3)
    frames, rewards, _, _, info = envs.step(tuple(one[0] for one in info["actions"]))
    assert rewards.tolist() == [0, 0]
    assert info["round"].tolist() == [2, 2]
    envs.close()


def test_without_gymnasium_the_error_names_the_extra():
    lines = "import sys; sys.modules['gymnasium'] = None; import dynamics.client.gym_env"
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True)
    assert (
        "dynamics.client.gym_env needs gymnasium: pip install 'dynamics-bootstrap[gym]'"
        in done.stderr
    )
