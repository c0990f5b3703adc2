from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dynamics.core.config import LoopConfig, WorldConfig
from dynamics.core.domain import load_domain
from dynamics.core.errors import UserError
from dynamics.core.progress import silent
from dynamics.core.seeds import numpy_rng
from dynamics.data.video.filmed import CLIPS_SCHEMA
from dynamics.storage.tables import read_table

pytest.importorskip("minigrid", reason="needs pip install minigrid")

from dynamics.worlds.environment import open_env
from dynamics.worlds.minigrid.domain import Minigrid
from dynamics.worlds.minigrid.oracle import read_state
from dynamics.worlds.minigrid.rules import Rules
from dynamics.worlds.record import Step, filmed_picture, steps

LEVELS = [
    "MiniGrid-DoorKey-6x6-v0",
    "BabyAI-GoToRedBallGrey-v0",
    "MiniGrid-LavaCrossingS9N1-v0",
    "MiniGrid-ObstructedMaze-1Dlh-v0",
]
ROOM = "1,1,0;250250250250250/250100510100250/250100100100250/250100100100250/250250250250250"
"""5x5: the agent looks right, at a green key."""


def walked(level: str, count: int) -> list[Step]:
    env, actor = open_env(level)
    return list(islice(steps(env, actor, numpy_rng(0, level)), count))


def domain(level: str) -> Minigrid:
    found = load_domain(LoopConfig(domain="minigrid", world=WorldConfig(env=level)))
    assert isinstance(found, Minigrid)
    return found


@pytest.mark.parametrize("level", LEVELS)
def test_sentences_lead_to_the_pictures_that_followed_by_the_levels_own_rules(level: str) -> None:
    taken, world = walked(level, 40), domain(level)
    kinds = {world.kind(step.sentence) for step in taken[1:]}
    assert {"turn", "go"} <= kinds
    for before, after in pairwise(taken):
        assert world.outcome(after.sentence, before.state) == after.state, after.sentence
        assert world.meaning(after.sentence.upper() + ".") == after.sentence


@pytest.mark.parametrize("level", LEVELS)
def test_states_are_read_back_from_filmed_pictures(level: str) -> None:
    taken, rules = walked(level, 10), Rules(level)
    for step in taken:
        frame = filmed_picture(step.frame, 4)
        state, differs = read_state(frame, rules.width, rules.height)
        assert state == step.state
        assert differs < 0.01
        drawn = rules.draw(step.state)
        np.testing.assert_array_equal(drawn, step.frame)


def test_the_picture_of_a_state_is_what_is_filmed() -> None:
    world = domain(LEVELS[0])
    for step in walked(LEVELS[0], 4):
        np.testing.assert_array_equal(world.picture(step.state), filmed_picture(step.frame, 4))


@pytest.mark.parametrize("px", [32, 40, 56])
def test_states_are_read_where_cells_end_within_pixels(px: int) -> None:
    world = domain(LEVELS[0])
    for step in walked(LEVELS[0], 6):
        large = Image.fromarray(filmed_picture(step.frame, 4))
        small = large.resize((px, px), Image.Resampling.BOX)
        assert world.recognised(np.asarray(small)) == step.state


def test_noise_and_plain_colours_are_not_recognised() -> None:
    world = domain(LEVELS[0])
    noise = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    assert world.recognised(noise) is None
    assert world.recognised(np.full((48, 48, 3), 200, np.uint8)) is None


@pytest.mark.parametrize(
    ("sentence", "leads"),
    [
        ("turn left", True),
        ("go forward", False),  # the key is in the way
        ("pick up the yellow key", False),
        ("pick up the grey key", False),
        ("pick up the green key", True),
        ("drop the blue ball", False),
        ("open the purple door", False),  # not in front
        ("dance", False),
    ],
)
def test_what_cannot_be_carried_out_leads_to_no_state(sentence: str, leads: bool) -> None:
    assert (Rules(LEVELS[0]).outcome(sentence, ROOM) is not None) == leads


@pytest.mark.parametrize(
    ("front", "sentence", "then"),
    [
        ("100", "drop the red ball", "600"),
        ("442", "open the yellow door", "440"),
        ("720", "open the blue box with the green key in it", "510"),
        ("720", "open the blue box", "100"),
    ],
)
def test_what_is_carried_and_held_is_said_where_it_matters(
    front: str, sentence: str, then: str
) -> None:
    after = Rules(LEVELS[0]).outcome(sentence, ROOM.replace("510", front))
    assert after == ROOM.replace("510", then)


def test_held_out_transitions_are_in_no_other_split(tmp_path: Path) -> None:
    world = domain(LEVELS[0])
    seen = {}
    for split, pairs in (("heldout", 6), ("pool", 36)):
        world.film(split, pairs, tmp_path / split, silent)  # type: ignore[arg-type]
        rows = read_table(tmp_path / split / "clips.parquet", CLIPS_SCHEMA).to_pylist()
        assert {len(row["actions"]) for row in rows} == {1 if split == "heldout" else 6}
        seen[split] = {
            transition
            for row in rows
            for transition in zip(row["states"], row["actions"], row["states"][1:], strict=False)
        }
    assert not seen["heldout"] & seen["pool"]


def test_a_domain_without_a_level_says_the_key() -> None:
    with pytest.raises(UserError, match=r"world\.env"):
        load_domain(LoopConfig(domain="minigrid"))
