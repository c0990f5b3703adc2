"""The oracle: reads a level's state back from pixels, by the drawing that would give them.

A frame is a drawing of `TILE_PX` a cell, made smaller or larger by area averaging; cells that do
not end at a pixel's edge share pixels. So cells are first guessed one by one, and then each is
chosen again, twice, by what its neighbours leave of the frame. T drawings of a cell.
"""

from functools import cache, lru_cache

import numpy as np
from minigrid.core.grid import Grid
from minigrid.core.world_object import WorldObj
from numpy.typing import NDArray
from PIL import Image

from dynamics.worlds.minigrid.rules import TILE_PX, drawable_cells, to_text

Floats = NDArray[np.float32]

_PASSES = 2


@cache
def _drawings() -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Cells without the agent [T, P, P, 3], those with it [S, P, P, 3], and whose they are [S, 2].

    The last are the row of the cell below the agent and the agent's direction.
    """
    plain, agent, whose = [], [], []
    for row, cell in enumerate(drawable_cells()):
        found = WorldObj.decode(*cell)
        plain.append(_drawn(found, None))
        if found is None or found.can_overlap():
            agent += [_drawn(found, direction) for direction in range(4)]
            whose += [(row, direction) for direction in range(4)]
    return np.stack(plain), np.stack(agent), np.array(whose)


def _drawn(found: WorldObj | None, direction: int | None) -> Floats:
    tile = Grid.render_tile(found, agent_dir=direction, tile_size=TILE_PX)
    return tile.astype(np.uint8).astype(np.float32)  # as a level's picture rounds


@cache
def _averaging(px: int, cells: int) -> Floats:
    """Rows average a drawing's pixels into those of a frame, [px, cells * TILE_PX]."""
    size = cells * TILE_PX
    edges = np.arange(px + 1) * size / px
    pixels = np.arange(size)
    upper = np.minimum(edges[1:, None], pixels + 1)
    shared = np.clip(upper - np.maximum(edges[:-1, None], pixels), 0, None)
    return np.asarray(shared * px / size, np.float32)


@lru_cache(maxsize=4096)
def _views(px: int, cells: int, y: int, x: int) -> tuple[slice, slice, Floats, Floats]:
    """The pixels that a cell has a part in, and that part for every drawing, plain and agent's."""
    parts = [_averaging(px, cells)[:, at * TILE_PX : (at + 1) * TILE_PX] for at in (y, x)]
    touched = [np.flatnonzero(part.any(axis=1)) for part in parts]
    rows, columns = (slice(int(one[0]), int(one[-1]) + 1) for one in touched)
    plain, agent = (
        np.einsum("ra,tabc,sb->trsc", parts[0][rows], drawn, parts[1][columns], optimize=True)
        for drawn in _drawings()[:2]
    )
    return rows, columns, plain, agent


def read_state(frame_HW3: NDArray[np.uint8], width: int, height: int) -> tuple[str, float]:
    """The state that a square picture of a level of width x height cells shows, and how well.

    Returns:
        The state, and the mean absolute difference, of 255, of its drawing from the picture.
    """
    cells = max(width, height)
    if frame_HW3.shape[0] >= 2 * cells * TILE_PX:  # no more to see, and the views would be large
        side = (cells * TILE_PX, cells * TILE_PX)
        small = Image.fromarray(frame_HW3).resize(side, Image.Resampling.BOX)
        frame_HW3 = np.asarray(small)
    px = frame_HW3.shape[0]
    kinds, (where, stands) = _guess(frame_HW3, width, height)
    left = frame_HW3.astype(np.float32)  # of the frame, when all cells' parts are taken off
    for cell in range(width * height):
        rows, columns, plain, agent = _views(px, cells, *divmod(cell, width))
        left[rows, columns] -= agent[stands] if cell == where else plain[kinds[cell]]
    for cell in [*range(width * height)] * _PASSES:
        rows, columns, plain, agent = _views(px, cells, *divmod(cell, width))
        views, chosen = (agent, stands) if cell == where else (plain, int(kinds[cell]))
        wanted = left[rows, columns] + views[chosen]
        best = int(np.square(views - wanted).sum(axis=(1, 2, 3)).argmin())
        left[rows, columns] = wanted - views[best]
        if cell == where:
            stands = best
        else:
            kinds[cell] = best
    kinds[where], direction = _drawings()[2][stands]
    encoded = np.array(drawable_cells(), np.uint8)[kinds].reshape(height, width, 3)
    text = to_text(encoded.transpose(1, 0, 2), (where % width, where // width), int(direction))
    seen = np.s_[: -(-height * px // cells), : -(-width * px // cells)]
    return text, float(np.abs(left[seen]).mean())


def _guess(
    frame_HW3: NDArray[np.uint8], width: int, height: int
) -> tuple[NDArray[np.int64], tuple[int, int]]:
    """The nearest drawing of each cell alone, and of the one where the agent seems to stand."""
    side = max(width, height) * TILE_PX
    scaled = Image.fromarray(frame_HW3).resize((side, side), Image.Resampling.LANCZOS)
    level = np.asarray(scaled, np.float32)[: height * TILE_PX, : width * TILE_PX]
    tiles = level.reshape(height, TILE_PX, width, TILE_PX, 3).transpose(0, 2, 1, 3, 4)
    plain, agent, _ = _drawings()
    plain_NT, agent_NS = (
        _distances(tiles.reshape(height * width, -1), one) for one in (plain, agent)
    )
    # The agent stands where a drawing with it gains most over the best one without.
    where = int(np.argmax(plain_NT.min(axis=1) - agent_NS.min(axis=1)))
    return plain_NT.argmin(axis=1), (where, int(agent_NS[where].argmin()))


def _distances(cells_ND: Floats, drawn: Floats) -> Floats:
    """Squared distances [N, T]."""
    drawn_TD = drawn.reshape(len(drawn), -1)
    cross = -2 * cells_ND @ drawn_TD.T
    return np.asarray(cross + (cells_ND**2).sum(1)[:, None] + (drawn_TD**2).sum(1))
