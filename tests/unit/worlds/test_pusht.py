from itertools import islice

import numpy as np
import pytest

from dynamics.core.seeds import numpy_rng
from dynamics.worlds.environment import open_env
from dynamics.worlds.pusht import Pusher
from dynamics.worlds.record import steps


class Body:
    def __init__(self, x: float, y: float, angle: float = 0.0) -> None:
        self.position, self.angle = (x, y), angle


class Table:
    def __init__(self) -> None:
        self.agent, self.block = Body(100, 100), Body(300, 300)
        self.unwrapped = self


def test_sentences_say_what_happened_to_the_block_or_else_where_the_disc_went() -> None:
    table = Table()
    pusher = Pusher(table)
    before = pusher.look()
    table.agent = Body(196, 100)
    assert pusher.say(None, before, pusher.look()) == "move right"
    table.block = Body(300, 270, 0.1)
    assert pusher.say(None, before, pusher.look()) == "push the block up"
    table.block = Body(302, 295, 0.9)
    assert pusher.say(None, before, pusher.look()) == "turn the block clockwise"


def test_ways_stay_on_the_table_and_differ_away_from_the_block() -> None:
    table, rng = Table(), np.random.default_rng(0)
    pusher, last = Pusher(table), None
    for _ in range(50):
        end = pusher.act(rng)
        assert ((end >= 0) & (end <= 512)).all()
        assert last is None or not np.array_equal(end, last)
        last = end


def test_pusht_is_recorded_with_pushes() -> None:
    pytest.importorskip("gym_pusht", reason="needs pip install gym-pusht")
    env, actor = open_env("gym_pusht/PushT-v0")
    taken = list(islice(steps(env, actor, numpy_rng(3, "pusht"), actor.repeat), 13))
    assert taken[0].frame.shape == (128, 128, 3)
    assert any(step.sentence.startswith("push the block") for step in taken)
