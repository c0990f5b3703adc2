"""An agent that walks from thing to thing and does what can be done to each."""

from collections import defaultdict, deque
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from minigrid.core.constants import DIR_TO_VEC
from minigrid.core.world_object import WorldObj
from numpy.typing import NDArray

from dynamics.core.errors import UserError
from dynamics.worlds.minigrid.rules import drawn, say, state_of

Place = tuple[int, int]

_DROPPED = 0.5
"""Chance that what is carried is put down on a floor that was walked to."""


@dataclass(frozen=True, slots=True)
class Look:
    """A moment: the state, and what the sentence of the next action may name."""

    state: str
    front: WorldObj | None
    carried: WorldObj | None
    spoken: dict[str, str]
    """Action to its sentence; made now, since actions change the objects."""


class Walker:
    """`dynamics.worlds.environment.Actor` for every level of minigrid and BabyAI."""

    options: ClassVar[dict[str, Any]] = {"highlight": False}
    repeat = 1
    goes_on = True

    def __init__(self, env: Any, words: str | None = None) -> None:
        if words:
            raise UserError("minigrid's sentences come from its states; leave --actions out")
        self._env = env.unwrapped
        self._env.gen_obs = dict  # nobody looks at it, and it takes longer than a step
        self._way: list[str] = []

    def act(self, rng: np.random.Generator) -> int:
        """The next action on the way to something, or on it; something else when it is done."""
        if not self._way:
            target = self._chosen(rng)
            self._way = [*self._way_to(target, rng), self._done_to(target, rng)]
        return int(self._env.actions[self._way.pop(0)])

    def _chosen(self, rng: np.random.Generator) -> Place:
        """A cell: first what kind of thing, so that the few doors are met as often as the floor."""
        env, kinds = self._env, defaultdict[str, list[Place]](list)
        for x in range(env.grid.width):
            for y in range(env.grid.height):
                found = env.grid.get(x, y)
                if found is None or found.type in ("floor", "goal"):
                    kinds["floor"].append((x, y))
                elif found.type not in ("wall", "lava"):
                    kinds[found.type].append((x, y))
        cells = kinds[sorted(kinds)[rng.integers(len(kinds))]]
        return cells[rng.integers(len(cells))]

    def _way_to(self, target: Place, rng: np.random.Generator) -> list[str]:
        """The fewest actions until the target is in front; none where nothing leads there."""
        env = self._env
        turns = [("left", -1), ("right", 1)][:: 1 if rng.random() < 0.5 else -1]
        start = (int(env.agent_pos[0]), int(env.agent_pos[1]), int(env.agent_dir))
        ways: dict[tuple[int, int, int], list[str]] = {start: []}
        todo = deque([start])
        while todo:
            x, y, direction = pose = todo.popleft()
            front = (x + int(DIR_TO_VEC[direction][0]), y + int(DIR_TO_VEC[direction][1]))
            if front == target:
                return ways[pose]
            onto = env.grid.get(*front)
            moves = {name: (x, y, (direction + by) % 4) for name, by in turns}
            if onto is None or (onto.can_overlap() and onto.type != "lava"):
                moves["forward"] = (*front, direction)
            for name, new in moves.items():
                if new not in ways:
                    ways[new] = [*ways[pose], name]
                    todo.append(new)
        return []

    def _done_to(self, target: Place, rng: np.random.Generator) -> str:
        """What is done to the thing that is reached."""
        env, found = self._env, self._env.grid.get(*target)
        if found is None:
            return "drop" if env.carrying and rng.random() < _DROPPED else "forward"
        if found.type == "box":
            return ("toggle", "pickup")[rng.integers(2)]
        return "toggle" if found.type == "door" else "pickup" if found.can_pickup() else "forward"

    def look(self) -> Look:
        """The state and the things at hand."""
        env = self._env
        front, carried = env.grid.get(*env.front_pos), env.carrying
        spoken = {action.name: say(action.name, front, carried) for action in env.actions}
        return Look(state_of(env), front, carried, spoken)

    def frame(self) -> NDArray[np.uint8]:
        """The level from above."""
        return drawn(self._env)

    def state(self, look: Look) -> str:
        """What the picture shows."""
        return look.state

    def say(self, action: int, before: Look, after: Look) -> str:
        """What a person would call it."""
        return before.spoken[self._env.actions(action).name]
