"""Photographs of tables: what the tabletop's image tokenizer learns from and is measured on."""

import numpy as np

from dynamics.core.config import WorldConfig
from dynamics.core.seeds import numpy_rng
from dynamics.models.image_tokenizers.fsq import FsqTokenizer
from dynamics.tabletop.oracle import read_cells
from dynamics.tabletop.render import (
    downscale,
    expose,
    light,
    render_cells,
    sample_lighting,
    sample_offsets,
)
from dynamics.tabletop.scene import NUM_KINDS, sample_scene


def photograph_twice(
    cells_BK: np.ndarray, world: WorldConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Two exposures of tables (kind indices [B, G*G]), each table under its own light.

    Returns uint8 [B, H, W, 3] twice: only noise differs.
    """
    offsets = np.stack([sample_offsets(rng, world.grid) for _ in cells_BK])
    canvas = render_cells(cells_BK, offsets, world.cell_px * world.film_scale)
    lit = np.concatenate([light(frame[None], sample_lighting(rng)) for frame in canvas])
    first, second = (downscale(expose(lit, rng), world.frame_px) for _ in range(2))
    return first, second


def crowded_tables(
    num: int, world: WorldConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Two exposures of tables of which half of the cells hold an object: every kind is frequent."""
    shape = (num, world.grid**2)
    cells = rng.integers(1, NUM_KINDS + 1, size=shape) * (rng.random(shape) < 0.5)
    return photograph_twice(cells, world, rng)


def read_back(
    tokenizer: FsqTokenizer, world: WorldConfig, *, num: int, seed: int
) -> dict[str, float]:
    """Shares of ``frames`` and ``cells`` that the oracle reads correctly after encode and decode.

    ``flips`` is the share of codes that differ between two exposures of the same table.
    """
    rng = numpy_rng(seed, "read-back")
    scenes = [
        sample_scene(rng, world.grid, world.min_objects, world.max_objects) for _ in range(num)
    ]
    truth = np.array([scene.cells for scene in scenes])
    first, second = photograph_twice(truth, world, rng)
    codes = tokenizer.encode(first)
    correct = read_cells(tokenizer.decode(codes), world) == truth
    flips = codes != tokenizer.encode(second)
    return {
        "frames": float(correct.all(1).mean()),
        "cells": float(correct.mean()),
        "flips": float(flips.mean()),
    }
