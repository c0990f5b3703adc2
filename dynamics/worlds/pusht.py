"""PushT (gym-pusht): a disc pushes a T-shaped block over a table, by physics.

https://github.com/huggingface/gym-pusht. The disc goes a fixed way in one of four directions;
the sentence says what came of it, by the poses before and after.
"""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dynamics.core.errors import UserError

_DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
_WAY = 96.0
"""Length of a way, of the table's 512."""
_EDGE = 24.0
_TO_THE_BLOCK = 0.7
"""Chance of a direction that leads towards the block: others seldom meet it."""
_REACH = 150.0
"""Distance from the block's middle, along the axes, from which a way may push it."""
_MOVED, _TURNED = 12.0, 0.2
"""The least distance, and radians, by which the block has visibly moved or turned."""

Pose = tuple[NDArray[np.float64], NDArray[np.float64], float]
"""Where the disc is, where the block is, and its angle."""


class Pusher:
    """`dynamics.worlds.environment.Actor` of PushT."""

    options: ClassVar[dict[str, Any]] = {"observation_width": 128, "observation_height": 128}
    repeat = 8
    goes_on = True

    def __init__(self, env: Any, words: str | None = None) -> None:
        if words:
            raise UserError("the sentences of PushT come from its poses; leave --actions out")
        self._env = env.unwrapped
        self._last = ""

    def act(self, rng: np.random.Generator) -> NDArray[np.float32]:
        """Where the disc shall go: a direction in which there is room, mostly towards the block.

        Away from the block never twice the same: two ways of one sentence would look like one.
        """
        disc, block, _ = self.look()
        near = float(np.abs(disc - block).sum())
        ends = {name: disc + _WAY * np.array(way) for name, way in _DIRECTIONS.items()}
        free = [name for name in ends if (np.abs(ends[name] - 256) <= 256 - _EDGE).all()]
        if near > _REACH:
            free = [name for name in free if name != self._last]
        if rng.random() < _TO_THE_BLOCK:
            free = [name for name in free if np.abs(ends[name] - block).sum() < near] or free
        self._last = free[rng.integers(len(free))]
        return np.asarray(ends[self._last], np.float32)

    def look(self) -> Pose:
        """The poses of the disc and of the block."""
        block = self._env.block
        return np.array(self._env.agent.position), np.array(block.position), float(block.angle)

    def frame(self) -> NDArray[np.uint8]:
        """The table from above; ``render`` would mark the action in it."""
        return np.asarray(self._env._render(), np.uint8)

    def state(self, look: Pose) -> str:
        """None: poses are no canonical text."""
        return ""

    def say(self, action: Any, before: Pose, after: Pose) -> str:
        """What happened to the block; where nothing did, the way of the disc."""
        turned, moved = after[2] - before[2], after[1] - before[1]
        far, round_ = float(np.abs(moved).max()) / _MOVED, abs(turned) / _TURNED
        if round_ >= max(1.0, far):  # y points down, so that angles grow clockwise
            return f"turn the block {'clockwise' if turned > 0 else 'counterclockwise'}"
        if far >= 1:
            return f"push the block {_direction(moved)}"
        return f"move {_direction(after[0] - before[0])}"


def _direction(way: NDArray[np.float64]) -> str:
    x, y = way
    if abs(x) > abs(y):
        return "right" if x > 0 else "left"
    return "down" if y > 0 else "up"
