"""Train the tiny image tokenizer on photographs of scenes (no text, no video)."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from dynamics.core.config import WorldConfig
from dynamics.core.progress import Progress, silent
from dynamics.core.seeds import derive_seed, numpy_rng
from dynamics.models.image_tokenizers.fsq import FsqAutoencoder, FsqConfig, FsqTokenizer, to_pixels
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

OBJECT_WEIGHT = 4.0
EDGE_WEIGHT = 2.0
STABILITY_WEIGHT = 0.1


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


def reconstruction_loss(pixels: Tensor, target: Tensor) -> Tensor:
    """Squared error, object pixels weighted, plus squared error of the spatial gradients."""
    saturation = target.amax(1, keepdim=True) - target.amin(1, keepdim=True)
    weight = 1 + OBJECT_WEIGHT * (saturation > 0.3)
    loss = (weight * (pixels - target) ** 2).mean()
    for dim in (2, 3):
        loss = loss + EDGE_WEIGHT * mse_loss(pixels.diff(dim=dim), target.diff(dim=dim))
    return loss


def fit_image_tokenizer(
    world: WorldConfig,
    *,
    steps: int,
    seed: int,
    num_tables: int = 3000,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    progress: Progress = silent,
) -> FsqTokenizer:
    """Train with Adam and a cosine schedule; returns the tokenizer."""
    torch.manual_seed(derive_seed(seed, "image-tokenizer"))
    rng = numpy_rng(seed, "image-tokenizer-data")
    # Crowded tables: half of the cells hold an object, so that every kind is seen often.
    shape = (num_tables, world.grid**2)
    cells = rng.integers(1, NUM_KINDS + 1, size=shape) * (rng.random(shape) < 0.5)
    first, second = (to_pixels(frames) for frames in photograph_twice(cells, world, rng))
    model = FsqAutoencoder(FsqConfig(frame_px=world.frame_px, patch_px=world.cell_px))
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, steps, eta_min=learning_rate / 50
    )
    for step in range(steps):
        rows = torch.from_numpy(rng.integers(num_tables, size=batch_size))
        latent, again = model.bound(first[rows]), model.bound(second[rows])
        rounded = latent + (latent.round() - latent).detach()  # straight-through rounding
        reconstruction = reconstruction_loss(model.reconstruct(rounded), first[rows])
        # Two exposures of one cell should share a code, and latents should sit near a level:
        # codes that flip with the noise are an entropy floor for FDP and false changes for IDM.
        stability = mse_loss(latent, again) + 0.25 * mse_loss(latent, latent.round().detach())
        optimizer.zero_grad()
        (reconstruction + STABILITY_WEIGHT * stability).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            progress(step + 1, steps, "image tokenizer")
    return FsqTokenizer(model)


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
