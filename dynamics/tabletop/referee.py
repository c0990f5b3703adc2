"""On the tabletop the world's rules say what an action leads to; elsewhere nobody knows."""

from collections.abc import Sequence

import numpy as np

from dynamics.core.config import LoopConfig, WorldConfig
from dynamics.tabletop.language import parse
from dynamics.tabletop.oracle import read_cells
from dynamics.tabletop.render import render_cells
from dynamics.tabletop.scene import Scene, apply

_MAX_DIFFERENCE = 20.0
"""Mean absolute difference, of 255, between a frame and what the oracle reads in it drawn afresh:
at most 7 on frames of the tabletop, 47 and more on noise and plain colours."""


class Referee:
    """Compares frames with what the rules give."""

    def __init__(self, world: WorldConfig) -> None:
        self._world = world

    def follow(self, frame_HW3: np.ndarray, actions: Sequence[str]) -> list[Scene | None]:
        """The scene after each action; None from where on it is not known.

        That is from the start when the frame shows no tabletop, else from the first sentence that
        the grammar does not have or that names an object which is not there.
        """
        scene = self._read(frame_HW3)
        scenes: list[Scene | None] = []
        for sentence in actions:
            action = None if scene is None else parse(sentence)
            scene = None if scene is None or action is None else apply(scene, action)
            scenes.append(scene)
        return scenes

    def agrees(self, frame_HW3: np.ndarray, expected: Scene | None) -> bool | None:
        """Whether every cell of the frame is as expected."""
        if expected is None:
            return None
        cells = read_cells(frame_HW3[None], self._world)[0]
        return tuple(cells.tolist()) == expected.cells

    def _read(self, frame_HW3: np.ndarray) -> Scene | None:
        cells = read_cells(frame_HW3[None], self._world)
        drawn = 255 * render_cells(cells, np.zeros((*cells.shape, 2)), self._world.cell_px)[0]
        kinds = cells[cells > 0]
        if len(set(kinds.tolist())) < len(kinds):  # no kind occurs twice in this world
            return None
        if float(np.abs(drawn - frame_HW3).mean()) > _MAX_DIFFERENCE:
            return None
        return Scene(self._world.grid, tuple(cells[0].tolist()))


def referee_of(cfg: LoopConfig, frame_px: int) -> Referee | None:
    """The referee of a run whose pictures are the tabletop's."""
    tabletop = cfg.pool.path is None and cfg.labelled.dataset is None
    return Referee(cfg.world) if tabletop and cfg.world.frame_px == frame_px else None
