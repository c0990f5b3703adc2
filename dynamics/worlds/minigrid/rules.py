"""States and sentences of a level; what follows is asked of the level's own rules.

A state is what the picture shows: the agent's place and direction, and every cell's object, colour
and door state, as ``x,y,direction;row/row/...`` with three digits a cell. What the agent carries
and what is in a box cannot be seen, so no state has it: a sentence names it where it matters.
"""

import re
import threading
from typing import Any

import numpy as np
from minigrid.core.constants import COLOR_TO_IDX, IDX_TO_COLOR, OBJECT_TO_IDX
from minigrid.core.grid import Grid
from minigrid.core.world_object import Key, WorldObj
from minigrid.minigrid_env import MiniGridEnv
from numpy.typing import NDArray

from dynamics.worlds.environment import open_env, reset

TILE_PX = 8

Thing = tuple[str, str]
"""Colour and type of an object."""


def thing(found: WorldObj | None) -> Thing | None:
    """An object's name."""
    return None if found is None else (found.color, found.type)


def state_of(env: MiniGridEnv) -> str:
    """The state that the level shows."""
    return to_text(env.grid.encode(), env.agent_pos, env.agent_dir)


def to_text(cells_WH3: NDArray[np.uint8], place: Any, direction: int) -> str:
    """A state from minigrid's own encoding of the cells."""
    rows = ["".join(f"{t:x}{c}{s}" for t, c, s in row) for row in cells_WH3.transpose(1, 0, 2)]
    return f"{int(place[0])},{int(place[1])},{int(direction)};" + "/".join(rows)


def set_state(env: MiniGridEnv, state: str) -> None:
    """Build a state in the level, nothing carried, boxes empty."""
    agent, _, cells = state.partition(";")
    x, y, direction = (int(part) for part in agent.split(","))
    digits = np.array([[int(one, 16) for one in row] for row in cells.split("/")], np.uint8)
    env.grid, _ = Grid.decode(digits.reshape(len(digits), -1, 3).transpose(1, 0, 2))
    env.agent_pos, env.agent_dir = (x, y), direction
    env.carrying, env.step_count = None, 0


class Rules:
    """A level that is set to states; threads take turns."""

    def __init__(self, level: str) -> None:
        env, _ = open_env(level)
        reset(env, 0)
        self._lock = threading.Lock()
        level_env: Any = env.unwrapped
        self.width, self.height = int(level_env.width), int(level_env.height)
        level_env.gen_obs = dict  # what the agent sees takes longer than the step, and is not read
        self._env = level_env

    def draw(self, state: str) -> NDArray[np.uint8]:
        """The picture of a state, [H, W, 3] with `TILE_PX` a cell."""
        with self._lock:
            set_state(self._env, state)
            return drawn(self._env)

    def outcome(self, sentence: str, state: str) -> str | None:
        """The state that a sentence leads to; None where it cannot be carried out."""
        env = self._env
        with self._lock:
            set_state(env, state)
            action = _prepared(env, sentence)
            if action is None:
                return None
            # The class's own rules: a level may add moves of others, which no sentence names.
            MiniGridEnv.step(env, env.actions[action])
            after = state_of(env)
        return None if after == state else after


def drawn(env: MiniGridEnv) -> NDArray[np.uint8]:
    """The whole level from above, without the shine of the agent's view."""
    x, y = env.agent_pos
    return np.asarray(env.grid.render(TILE_PX, (int(x), int(y)), env.agent_dir), np.uint8)


_COLOURS, _TYPES = "|".join(COLOR_TO_IDX), "|".join(OBJECT_TO_IDX)
_SENTENCE = re.compile(
    r"turn (?P<turn>left|right)|(?P<go>go forward)"
    rf"|(?P<verb>pick up|drop|open|close) the (?P<colour>{_COLOURS}) (?P<type>{_TYPES})"
    rf"(?: with the (?P<held_colour>{_COLOURS}) (?P<held>{_TYPES}) in it)?"
)


def parsed(sentence: str) -> re.Match[str] | None:
    """The parts of a sentence; None outside the language."""
    return _SENTENCE.fullmatch(" ".join(sentence.lower().split()).rstrip("."))


def say(action: str, front: WorldObj | None, carried: WorldObj | None) -> str:
    """The sentence of an action, by its name in minigrid, on what is in front; "" without one."""
    if action in ("left", "right"):
        return f"turn {action}"
    if action == "forward":
        return "go forward"
    named = thing(carried if action == "drop" else front)
    if named is None or action not in ("pickup", "drop", "toggle"):
        return ""
    verb = {"pickup": "pick up", "drop": "drop"}.get(action, "open")
    if action == "toggle" and getattr(front, "is_open", False):
        verb = "close"
    held = thing(getattr(front, "contains", None)) if action == "toggle" else None
    inside = f" with the {held[0]} {held[1]} in it" if held else ""
    return f"{verb} the {named[0]} {named[1]}{inside}"


def _prepared(env: Any, sentence: str) -> str | None:
    """The action's name in minigrid, with what the sentence says of unseen things made so.

    None where the sentence does not fit what is in front.
    """
    found = parsed(sentence)
    if found is None:
        return None
    if found["turn"] or found["go"]:
        return found["turn"] or "forward"
    named, front = (found["colour"], found["type"]), env.grid.get(*env.front_pos)
    if found["verb"] == "drop":
        env.carrying = _made(*named)
        return "drop"
    if thing(front) != named:
        return None
    if found["verb"] == "pick up":
        return "pickup"
    if named[1] == "door":
        env.carrying = Key(front.color)  # whoever opens a locked door has its key
        return "toggle" if front.is_open == (found["verb"] == "close") else None
    if named[1] == "box" and found["verb"] == "open":
        front.contains = _made(found["held_colour"], found["held"]) if found["held"] else None
        return "toggle"
    return None


def _made(colour: str, kind: str) -> WorldObj | None:
    return WorldObj.decode(OBJECT_TO_IDX[kind], COLOR_TO_IDX[colour], 0)


def drawable_cells() -> list[tuple[int, int, int]]:
    """Every object, colour and door state that minigrid draws differently."""
    colours = list(IDX_TO_COLOR)
    plain = [(OBJECT_TO_IDX["empty"], 0, 0), (OBJECT_TO_IDX["wall"], COLOR_TO_IDX["grey"], 0)]
    goal = (OBJECT_TO_IDX["goal"], COLOR_TO_IDX["green"], 0)
    lava = (OBJECT_TO_IDX["lava"], COLOR_TO_IDX["red"], 0)
    painted = [(OBJECT_TO_IDX[k], c, 0) for k in ("floor", "key", "ball", "box") for c in colours]
    doors = [(OBJECT_TO_IDX["door"], c, state) for c in colours for state in range(3)]
    return [*plain, goal, lava, *painted, *doors]
