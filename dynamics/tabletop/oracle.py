"""The oracle: reads the state of the table back from pixels.

Every cell is matched against templates of every kind at a lattice of sub-cell offsets, with the
brightness left free; the best match names the cell.
"""

from functools import cache

import numpy as np

from dynamics.core.config import WorldConfig
from dynamics.tabletop.render import MAX_OFFSET, render_cells
from dynamics.tabletop.scene import NUM_KINDS, Scene

_LATTICE = 5


@cache
def _templates(cell_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit-norm templates [D, T] with D = C*C*3, and their kind index [T]."""
    steps = np.linspace(-MAX_OFFSET, MAX_OFFSET, _LATTICE, dtype=np.float32)
    offsets = np.stack(np.meshgrid(steps, steps, indexing="ij"), axis=-1).reshape(-1, 2)
    kinds = np.concatenate([[0], np.repeat(np.arange(1, NUM_KINDS + 1), len(offsets))])
    where = np.concatenate([np.zeros((1, 2), np.float32), np.tile(offsets, (NUM_KINDS, 1))])
    # Rendered fine and averaged, as a filmed frame is.
    fine = render_cells(kinds[:, None], where[:, None], cell_px * 4)
    coarse = fine.reshape(len(kinds), cell_px, 4, cell_px, 4, 3).mean(axis=(2, 4))
    flat = coarse.reshape(len(kinds), -1)
    return (flat / np.linalg.norm(flat, axis=1, keepdims=True)).T, kinds


def read_cells(frames_BHW3: np.ndarray, world: WorldConfig) -> np.ndarray:
    """Kind index per cell, int64 [B, G*G], of uint8 frames at model size."""
    num, grid, cell = len(frames_BHW3), world.grid, world.cell_px
    tiles = frames_BHW3.reshape(num, grid, cell, grid, cell, 3).transpose(0, 1, 3, 2, 4, 5)
    patches = tiles.reshape(num * grid * grid, -1).astype(np.float32)
    templates, kinds = _templates(cell)
    # With a free gain the residual is |p|^2 - (p.t)^2 for unit t: the largest projection wins.
    best = kinds[np.argmax(patches @ templates, axis=1)]
    return np.asarray(best.reshape(num, grid * grid), dtype=np.int64)


def read_scenes(frames_BHW3: np.ndarray, world: WorldConfig) -> list[Scene]:
    """The scene that each frame shows; frames are uint8 [B, frame_px, frame_px, 3]."""
    return [Scene(world.grid, tuple(row)) for row in read_cells(frames_BHW3, world).tolist()]
