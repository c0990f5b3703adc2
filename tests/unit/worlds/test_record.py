import json
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from dynamics.core.errors import UserError
from dynamics.data.labelled import DATASETS
from dynamics.data.labelled.lerobot import list_lerobot
from dynamics.data.labelled.listing import Segment
from dynamics.data.video.decode import read_ends
from dynamics.data.video.filmed import CLIPS_SCHEMA
from dynamics.storage.tables import read_table
from dynamics.worlds.environment import Wanderer, open_env
from dynamics.worlds.lerobot import write_lerobot
from dynamics.worlds.record import FilmPlan, film_env, filmed_picture


class Slider(gymnasium.Env[Any, Any]):
    """A dot on a line of eight places, at whose ends nothing changes."""

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 1}

    def __init__(self, render_mode: str | None = None, actions: Any = None) -> None:
        self.action_space: Any = spaces.Discrete(2) if actions is None else actions
        self.observation_space = spaces.Discrete(8)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.place = int(self.np_random.integers(8))
        return self.place, {}

    def step(self, action: Any) -> Any:
        self.place = int(np.clip(self.place + (1 if action else -1), 0, 7))
        return self.place, 0.0, False, False, {}

    def render(self) -> Any:
        frame = np.zeros((3, 8, 3), np.uint8)
        frame[1, self.place] = (255, 0, 0)
        return frame


gymnasium.register("tests/Slider-v0", Slider)


def plan(**changes: Any) -> FilmPlan:
    given = {"env": "tests/Slider-v0", "pairs": 12, "labels": 5, "length": 4, "seed": 0}
    return FilmPlan(**given | {"hold_frames": 2, "fps": 6} | changes)


def test_any_environment_is_filmed_with_the_words_that_are_given(tmp_path: Path) -> None:
    film_env(plan(words="0=left,1=right"), tmp_path)
    clips = read_table(tmp_path / "clips.parquet", CLIPS_SCHEMA).to_pylist()
    assert [len(row["actions"]) for row in clips] == [4, 4, 4]
    assert {one for row in clips for one in row["actions"]} == {"left", "right"}
    labels = DATASETS["parquet"](tmp_path / "labels.parquet")
    assert len(labels.pairs) == 5
    assert {pair.name for pair in labels.pairs} == {"000000.mp4", "000001.mp4"}


def test_a_lerobot_dataset_has_a_segment_for_every_change_of_words(tmp_path: Path) -> None:
    write_lerobot(plan(words="0=left,1=right", repeat=2, length=3), tmp_path)
    info = json.loads((tmp_path / "meta" / "info.json").read_text())
    assert (info["total_episodes"], info["features"]["action"]["shape"]) == (4, [1])
    labels = list_lerobot(tmp_path)
    assert {pair.action for pair in labels.pairs} == {"left", "right"}
    for pair in labels.pairs:
        assert isinstance(pair.frames, Segment)
        ends = read_ends(pair.frames.path, pair.frames.span_s, 64).frames
        red = [int(end[..., 0].astype(int).sum(0).argmax()) for end in ends]
        assert (red[1] > red[0]) == (pair.action == "right")


def test_equal_seeds_film_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        film_env(plan(), tmp_path / name)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*"))
    assert len(files) == 5
    assert all(
        (tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files
    )


def test_actions_without_words_have_numbers_and_continuous_ones_directions() -> None:
    box = spaces.Box(np.float32([0, -1]), np.float32([10, 1]))
    named = Wanderer(Slider(actions=box), "1=push left/push right")
    assert Wanderer(Slider()).say(1, None, None) == "action 1"
    assert named.say(np.array([5.0, 0.9]), None, None) == "push right"
    assert named.say(np.array([5.0, -0.9]), None, None) == "push left"
    assert named.say(np.array([0.0, 0.2]), None, None) == "component 0 down"
    assert named.say(np.array([5.1, 0.0]), None, None) == "hold still"


def test_pictures_are_filmed_whole_square_and_even() -> None:
    assert filmed_picture(np.ones((3, 8, 3), np.uint8)).shape == (200, 200, 3)
    assert filmed_picture(np.ones((151, 99, 3), np.uint8)).shape == (152, 152, 3)
    assert filmed_picture(np.ones((400, 600, 3), np.uint8)).shape == (512, 512, 3)


@pytest.mark.parametrize(
    ("env", "words", "message"),
    [
        ("nowhere:Nothing-v0", None, "pip install nowhere"),
        ("Nothing-v0", None, "Nothing-v0 cannot be made"),
        ("tests/Slider-v0", "left", "NUMBER=WORDS"),
    ],
)
def test_what_cannot_be_filmed_is_said_in_a_line(env: str, words: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        open_env(env, words)
    assert "\n" not in str(error.value)


def test_an_environment_that_never_changes_is_refused(tmp_path: Path) -> None:
    class Still(Slider):
        def step(self, action: Any) -> Any:
            return 0, 0.0, True, False, {}

    gymnasium.register("tests/Still-v0", Still)
    with pytest.raises(UserError, match="no action changed the picture"):
        film_env(plan(env="tests/Still-v0"), tmp_path)
