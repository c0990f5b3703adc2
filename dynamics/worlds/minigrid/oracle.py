"""The oracle: reads a level's state back from pixels, cell by cell, by the nearest drawing.

D = 3 * TILE_PX**2 numbers a cell, T drawings.
"""

from functools import cache

import numpy as np
from minigrid.core.grid import Grid
from minigrid.core.world_object import WorldObj
from numpy.typing import NDArray
from PIL import Image

from dynamics.worlds.minigrid.rules import TILE_PX, drawable_cells, to_text

_DIRECTIONS = range(4)


@cache
def _drawings() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cells without the agent [T, D], and with it in each direction [T, 4, D]; far where none."""
    plain, agent = [], []
    for cell in drawable_cells():
        found = WorldObj.decode(*cell)
        plain.append(_drawn(found, None))
        stands = found is None or found.can_overlap()
        agent.append([_drawn(found, d if stands else None) for d in _DIRECTIONS])
        if not stands:
            agent[-1] = [np.full_like(plain[-1], 1e4)] * 4
    return np.stack(plain), np.array(agent)


def _drawn(found: WorldObj | None, direction: int | None) -> NDArray[np.float32]:
    tile = Grid.render_tile(found, agent_dir=direction, tile_size=TILE_PX)
    return tile.astype(np.uint8).astype(np.float32).ravel()  # as a level's picture rounds


def read_state(frame_HW3: NDArray[np.uint8], width: int, height: int) -> tuple[str, float]:
    """The state that a square picture of a level of width x height cells shows, and how well.

    Returns:
        The state, and the mean absolute difference, of 255, of its drawing from the picture.
    """
    side = max(width, height) * TILE_PX
    scaled = Image.fromarray(frame_HW3).resize((side, side), Image.Resampling.BOX)
    level = np.asarray(scaled, np.float32)[: height * TILE_PX, : width * TILE_PX]
    tiles = level.reshape(height, TILE_PX, width, TILE_PX, 3).transpose(0, 2, 1, 3, 4)
    cells_ND = tiles.reshape(height * width, -1)
    plain_TD, agent_TFD = _drawings()
    plain_NT = _distances(cells_ND, plain_TD)
    agent_NX = _distances(cells_ND, agent_TFD.reshape(-1, plain_TD.shape[1]))
    # The agent stands where a drawing with it gains most over the best one without.
    where = int(np.argmax(plain_NT.min(axis=1) - agent_NX.min(axis=1)))
    under, direction = divmod(int(np.argmin(agent_NX[where])), len(_DIRECTIONS))
    kinds_N = plain_NT.argmin(axis=1)
    nearest_ND = plain_TD[kinds_N]
    kinds_N[where], nearest_ND[where] = under, agent_TFD[under, direction]
    cells = np.array(drawable_cells(), np.uint8)[kinds_N].reshape(height, width, 3)
    place = (where % width, where // width)
    differs = float(np.abs(cells_ND - nearest_ND).mean())
    return to_text(cells.transpose(1, 0, 2), place, direction), differs


def _distances(cells_ND: NDArray[np.float32], drawn_TD: NDArray[np.float32]) -> NDArray[np.float32]:
    """Squared distances [N, T]."""
    cross = -2 * cells_ND @ drawn_TD.T
    return np.asarray(cross + (cells_ND**2).sum(1)[:, None] + (drawn_TD**2).sum(1))
