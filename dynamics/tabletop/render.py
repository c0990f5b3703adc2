"""Scenes to pixels: soft-edged shapes, sub-cell offsets, lighting per clip, noise per frame.

B frames, G cells a side, C pixels a cell side (already scaled), H = W = G * C.
"""

from dataclasses import dataclass

import numpy as np

from dynamics.core.config import WorldConfig
from dynamics.tabletop.scene import COLOURS, SHAPES, Scene

BACKGROUND = np.array([0.27, 0.26, 0.30], dtype=np.float32)
PALETTE = np.array(
    [[0.90, 0.16, 0.14], [0.14, 0.75, 0.25], [0.20, 0.38, 0.98], [0.97, 0.86, 0.18]],
    dtype=np.float32,
)
"""RGB 0..1 per entry of COLOURS."""
MAX_OFFSET = 0.075
"""Largest sub-cell offset, in cells (0.6 px of 8)."""


@dataclass(frozen=True, slots=True)
class Lighting:
    """Light of a clip: a gain per channel and a linear gradient over the table."""

    gain_3: np.ndarray
    gradient_2: np.ndarray


def sample_lighting(rng: np.random.Generator) -> Lighting:
    """Gain 0.85..1.1, tint +-0.03, gradient +-0.06 edge to centre."""
    gain = rng.uniform(0.85, 1.10) + rng.uniform(-0.03, 0.03, size=3)
    return Lighting(gain.astype(np.float32), rng.uniform(-0.06, 0.06, size=2).astype(np.float32))


def sample_offsets(rng: np.random.Generator, grid: int) -> np.ndarray:
    """[G*G, 2] sub-cell offsets (dy, dx) in cells; an object keeps its own when it moves."""
    return rng.uniform(-MAX_OFFSET, MAX_OFFSET, size=(grid * grid, 2)).astype(np.float32)


def carry_offsets(source: Scene, target: Scene, offsets: np.ndarray) -> np.ndarray:
    """Offsets after an action: they follow the object, by kind, or by cell when it was painted."""
    carried = offsets.copy()
    for cell, kind in enumerate(target.cells):
        if kind and kind in source.cells:
            carried[cell] = offsets[source.cells.index(kind)]
    return carried


def shape_masks(cell_px: int, offsets_N2: np.ndarray) -> np.ndarray:
    """Coverage 0..1 of every shape at every offset: [N, shapes, C, C], edges one pixel soft."""
    centres = (np.arange(cell_px, dtype=np.float32) + 0.5) / cell_px - 0.5
    v_N = centres[None, :, None] - offsets_N2[:, 0, None, None]
    u_N = centres[None, None, :] - offsets_N2[:, 1, None, None]
    u, v = np.abs(u_N), np.abs(v_N)
    far, near = np.maximum(u, v), np.minimum(u, v)
    square = far - 0.30
    ring = np.abs(np.sqrt(u * u + v * v) - 0.29) - 0.10
    cross = np.maximum(far - 0.38, near - 0.11)
    assert len(SHAPES) == 3
    distance = np.stack([square, ring, np.broadcast_to(cross, square.shape)], axis=1)
    coverage: np.ndarray = np.clip(0.5 - distance * cell_px, 0.0, 1.0)
    return coverage


def render_cells(cells_BK: np.ndarray, offsets_BK2: np.ndarray, cell_px: int) -> np.ndarray:
    """Unlit frames, float32 [B, H, W, 3] in 0..1, of kind indices [B, G*G]."""
    num, count = cells_BK.shape
    grid = round(count**0.5)
    canvas = np.broadcast_to(BACKGROUND, (num, count, cell_px, cell_px, 3)).copy()
    rows, columns = np.nonzero(cells_BK)
    kind = cells_BK[rows, columns] - 1
    masks = shape_masks(cell_px, offsets_BK2[rows, columns])
    alpha = masks[np.arange(len(kind)), kind % len(SHAPES)][..., None]
    colour = PALETTE[kind // len(SHAPES)][:, None, None, :]
    canvas[rows, columns] = alpha * colour + (1 - alpha) * BACKGROUND
    tiled = canvas.reshape(num, grid, grid, cell_px, cell_px, 3).transpose(0, 1, 3, 2, 4, 5)
    frames: np.ndarray = tiled.reshape(num, grid * cell_px, grid * cell_px, 3)
    return frames


def light(frames_BHW3: np.ndarray, lighting: Lighting) -> np.ndarray:
    """Frames under a clip's light."""
    size = frames_BHW3.shape[1]
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    shade = 1 + lighting.gradient_2[0] * ramp[:, None] + lighting.gradient_2[1] * ramp[None, :]
    lit: np.ndarray = frames_BHW3 * shade[..., None]
    lit *= lighting.gain_3
    return lit


def expose(frames_BHW3: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """uint8 frames with a little flicker per frame and sensor noise per pixel."""
    num = len(frames_BHW3)
    flicker = rng.normal(1.0, 0.004, size=(num, 1, 1, 1)).astype(np.float32)
    noise = rng.integers(-4, 5, size=frames_BHW3.shape, dtype=np.int8)
    exposed = np.empty(frames_BHW3.shape, np.uint8)
    # Frame by frame: a run films thousands of clips, and one frame stays in the cache.
    for number in range(num):
        frame = frames_BHW3[number] * (255 * flicker[number])
        frame += noise[number]
        frame += 0.5
        exposed[number] = np.clip(frame, 0, 255, out=frame)
    return exposed


def disturb(frames_BHW3: np.ndarray, world: WorldConfig, rng: np.random.Generator) -> np.ndarray:
    """Camera jitter and distractor specks, both off by default."""
    frames = frames_BHW3
    scale = frames.shape[1] // world.frame_px
    if world.camera_jitter_px:
        shifts = np.rint(
            rng.normal(0, world.camera_jitter_px * scale, size=(len(frames), 2))
        ).astype(int)
        frames = np.stack(
            [_shift(frame, dy, dx) for frame, (dy, dx) in zip(frames, shifts, strict=True)]
        )
    if world.distractors:
        frames = frames.copy()
        speck = max(1, scale)
        for frame in frames:
            for y, x in rng.integers(0, frames.shape[1] - speck, size=(world.distractors, 2)):
                frame[y : y + speck, x : x + speck] = 0.7
    return frames


def _shift(frame_HW3: np.ndarray, dy: int, dx: int) -> np.ndarray:
    return np.roll(frame_HW3, (dy, dx), axis=(0, 1))


def downscale(frames_BHW3: np.ndarray, size: int) -> np.ndarray:
    """Area mean to ``size`` pixels square; the filmed side must be a multiple of it."""
    num, height = frames_BHW3.shape[:2]
    factor = height // size
    blocks = frames_BHW3.reshape(num, size, factor, size, factor, 3).astype(np.float32)
    rounded: np.ndarray = np.clip(blocks.mean(axis=(2, 4)) + 0.5, 0, 255)
    return rounded.astype(np.uint8)


def snapshot(scenes: list[Scene], world: WorldConfig, rng: np.random.Generator) -> np.ndarray:
    """Independent photographs of scenes, uint8 [B, frame_px, frame_px, 3]; no video between."""
    cells = np.array([scene.cells for scene in scenes], dtype=np.int64)
    offsets = rng.uniform(-MAX_OFFSET, MAX_OFFSET, size=(*cells.shape, 2)).astype(np.float32)
    filmed = render_cells(cells, offsets, world.cell_px * world.film_scale)
    lit = np.concatenate([light(frame[None], sample_lighting(rng)) for frame in filmed])
    return downscale(expose(lit, rng), world.frame_px)


assert len(PALETTE) == len(COLOURS)
