"""An image tokenizer for the frames of any world, fitted to pairs of frames.

A code covers one square of a frame, so a tokenizer is learnt from windows of frames, which may be
of any size. A pair shows the same place twice: squares that differ by no more than the camera's
noise shall keep their code, squares that change shall get another one.

N pairs, B windows, H = W frame pixels, G squares a side, L = G * G codes a frame, D channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import mse_loss

from dynamics.core.progress import Detail, Progress, silent
from dynamics.core.seeds import derive_seed, numpy_rng
from dynamics.models.image_tokenizer import ImageTokenizer
from dynamics.models.image_tokenizers.frames import AREA, centre_crop
from dynamics.models.image_tokenizers.fsq import FsqAutoencoder, FsqConfig, FsqTokenizer, to_pixels

Frames = NDArray[np.uint8]
"""[N, H, W, 3]"""

STILL, CHANGED = 3.0, 8.0
"""Mean absolute difference of a square, of 255, up to which it only differs by noise, and from
which on something in it has changed."""
BLIND, LOST, DIM = 0.05, 0.5, 0.8
"""Share of the pairs with equal codes from which on a tokenizer overlooks much; likeness of the
decoded change to the real one, -1 to 1, below which it is lost, or dim (`change_likeness`); the
shipped tokenizer has 0.82 to 0.99 on the tabletop."""

_WINDOW = 4
"""Squares a side of what a step sees of a frame."""
_BATCH = 64
_UNLIKE = 0.3
"""Difference, of 2, from the frame's median colour from which on a pixel is no background."""
_OBJECT_WEIGHT, _EDGE_WEIGHT, _STILL_WEIGHT, _CHANGE_WEIGHT = 4.0, 2.0, 0.1, 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What a tokenizer sees of pairs of frames whose pixels differ."""

    seen: float
    """Share of the pairs whose codes differ."""
    kept: float
    """Share of the squares without a change that keep their code; 1 when there is none."""
    likeness: float
    """Median of `change_likeness`."""
    error: float
    """Mean absolute difference, of 255, of a decoded frame from the real one."""

    @property
    def is_clear(self) -> bool:
        """True when ``dynamics check`` finds nothing amiss."""
        return self.seen >= 1 - BLIND and self.likeness >= DIM


def sight(images: ImageTokenizer, first: Frames, second: Frames) -> Sight:
    """What a tokenizer sees of pairs."""
    codes, again = images.encode(first), images.encode(second)
    decoded = images.decode(codes), images.decode(again)
    cells = round(codes.shape[1] ** 0.5)
    still = square_change(first, second, images.frame_px // cells) <= STILL
    return Sight(
        seen=float((codes != again).any(1).mean()),
        kept=float((codes == again)[still].mean()) if still.any() else 1.0,
        likeness=float(np.median(change_likeness((first, second), decoded))),
        error=float(np.abs(decoded[0].astype(np.int16) - first).mean()),
    )


def change_likeness(
    real: tuple[Frames, Frames], decoded: tuple[Frames, Frames]
) -> NDArray[np.float64]:
    """Per pair the correlation of where the decoded frames differ with where the real ones do, [N].

    0 where one of the two has the same change everywhere.
    """
    a, b = (_centred_change(*pair) for pair in (real, decoded))
    norm = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    likeness: NDArray[np.float64] = (a * b).sum(1) / np.where(norm, norm, 1)
    return likeness


def _centred_change(source: Frames, target: Frames) -> NDArray[np.float64]:
    differ = np.abs(target.astype(np.float64) - source).mean(axis=3).reshape(len(source), -1)
    centred: NDArray[np.float64] = differ - differ.mean(1, keepdims=True)
    return centred


def square_change(first: Frames, second: Frames, patch_px: int) -> NDArray[np.float32]:
    """Mean absolute difference, of 255, in every square of pairs, [N, L]."""
    side = first.shape[1] // patch_px
    change = np.zeros((len(first), side, side), np.float32)
    for pair, frames in enumerate(zip(first, second, strict=True)):
        near, far = (frame.astype(np.int16) for frame in frames)
        squares = np.abs(near - far).reshape(side, patch_px, side, patch_px * 3)
        change[pair] = squares.mean(axis=(1, 3))
    return change.reshape(len(first), -1)


def fit_image_tokenizer(
    first: Frames,
    second: Frames,
    config: FsqConfig,
    *,
    steps: int,
    seed: int,
    what: str = "image tokenizer",
    progress: Progress = silent,
) -> FsqTokenizer:
    """Train on pairs with Adam and a cosine schedule."""
    torch.manual_seed(derive_seed(seed, "image-tokenizer"))
    windows = _Windows(first, second, config.patch_px, numpy_rng(seed, "image-tokenizer-data"))
    model = FsqAutoencoder(config)
    model.centre(windows.ground)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=6e-5)
    for step in range(1, steps + 1):
        loss = _loss(model, windows.draw())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps:
            progress(step, steps, what, Detail(losses={"pixels": loss.item()}))
    return FsqTokenizer(model)


@dataclass(frozen=True, slots=True)
class _Batch:
    first: Tensor
    """float32 [B, 3, H, W] in -1..1, and so is ``second``."""
    second: Tensor
    weight: Tensor
    """Weight of the pixels of ``first``, [B, 1, H, W]."""
    still: Tensor
    """Squares that only differ by noise, bool [B, L]."""
    changed: Tensor
    """Squares in which something changes, bool [B, L]."""


class _Windows:
    """Draws windows of pairs, every second one around a change where there is one."""

    def __init__(
        self, first: Frames, second: Frames, patch_px: int, rng: np.random.Generator
    ) -> None:
        self._pairs = first, second
        self._patch_px = patch_px
        self._rng = rng
        self._cells = first.shape[1] // patch_px
        self._side = min(_WINDOW, self._cells)
        self._change = square_change(first, second, patch_px)
        self._median = np.stack([np.median(frame, axis=(0, 1)) for frame in first])

    @property
    def ground(self) -> Tensor:
        """The commonest of the frames' median colours, channel by channel, -1..1, [3]."""
        return to_pixels(np.median(self._median, axis=0)[None, None, None])[0, :, 0, 0]

    def draw(self) -> _Batch:
        """The windows of a step."""
        rows = self._rng.integers(len(self._change), size=_BATCH)
        cut = [self._window(row, around=bool(n % 2)) for n, row in enumerate(rows)]
        first, second = (
            to_pixels(np.stack([frames[row][at] for row, (at, _) in zip(rows, cut, strict=True)]))
            for frames in self._pairs
        )
        change = torch.from_numpy(
            np.stack([self._change[row][cells] for row, (_, cells) in zip(rows, cut, strict=True)])
        )
        median = to_pixels(self._median[rows][:, None, None].astype(np.uint8))
        unlike = (first - median).abs().amax(1, keepdim=True) > _UNLIKE
        weight = 1 + _OBJECT_WEIGHT * unlike
        return _Batch(first, second, weight, change <= STILL, change >= CHANGED)

    def _window(self, row: int, *, around: bool) -> tuple[tuple[slice, slice], NDArray[np.int64]]:
        """Its place in the frame's pixels, and its squares [L]."""
        most = self._cells - self._side
        top, left = self._rng.integers(most + 1, size=2)
        changed = np.flatnonzero(self._change[row] >= CHANGED) if around else ()
        if len(changed):
            place = divmod(int(self._rng.choice(changed)), self._cells)
            shift = self._rng.integers(self._side, size=2)
            top, left = (min(max(0, p - s), most) for p, s in zip(place, shift, strict=True))
        squares = np.arange(self._side)
        cells = ((top + squares)[:, None] * self._cells + left + squares).ravel()
        top, left, size = (self._patch_px * value for value in (top, left, self._side))
        return (slice(top, top + size), slice(left, left + size)), cells


def _loss(model: FsqAutoencoder, batch: _Batch) -> Tensor:
    latent, again = model.bound(batch.first), model.bound(batch.second)
    rounded = latent + (latent.round() - latent).detach()  # straight-through rounding
    pixels = model.reconstruct(rounded)
    # Squared error, and that of the spatial gradients, which keeps edges sharp.
    loss = (batch.weight * (pixels - batch.first) ** 2).mean()
    for dim in (2, 3):
        loss = loss + _EDGE_WEIGHT * mse_loss(pixels.diff(dim=dim), batch.first.diff(dim=dim))
    # Two views of a square should share a code, and latents should sit near a level: codes that
    # flip with the noise are an entropy floor for FDP and false changes for IDM.
    apart = (latent - again).abs()
    still = (apart**2 * batch.still[..., None]).mean()
    near = 0.25 * mse_loss(latent, latent.round().detach())
    # A change should be a level or more in some channel, so that its code is another one.
    missed = (torch.relu(1 - apart.amax(-1)) * batch.changed).mean()
    return loss + _STILL_WEIGHT * (still + near) + _CHANGE_WEIGHT * missed


def choose_image_tokenizer(
    first: Frames,
    second: Frames,
    sizes: Sequence[int],
    levels: tuple[int, ...],
    *,
    steps: int,
    seed: int,
    progress: Progress = silent,
) -> tuple[FsqConfig, dict[int, Sight]]:
    """The smallest tokenizer that sees clearly what happens, or else the one that sees most of it.

    Each one is tried: fitted for some steps to four fifths of the pairs and measured on the rest.

    Args:
        first: frames at least as large as the largest tokenizer's, in an order without a meaning.
        second: frames of the same places, later.
        sizes: squares a side of a frame, smallest first.
        levels: of FSQ.
        steps: of a trial.
        seed: of the trials.
        progress: called with the steps of each trial.

    Returns:
        The chosen one, and what each of ``sizes`` that was tried sees.
    """
    found: dict[int, Sight] = {}
    split = max(1, len(first) // 5)
    for side in sizes:
        config = FsqConfig(frame_px=side * 8, levels=levels)
        near, far = (shrunk(frames, config.frame_px) for frames in (first, second))
        images = fit_image_tokenizer(
            near[split:],
            far[split:],
            config,
            steps=steps,
            seed=seed,
            what=f"try {side} x {side} codes a frame",
            progress=progress,
        )
        differ = (near[:split] != far[:split]).any(axis=(1, 2, 3))
        found[side] = sight(images, near[:split][differ], far[:split][differ])
        if found[side].is_clear:
            break
    best = max(found, key=lambda side: (found[side].is_clear, found[side].likeness))
    return FsqConfig(frame_px=best * 8, levels=levels), found


def shrunk(frames: Frames, px: int) -> Frames:
    """Square frames at another size, area-averaged."""
    return np.stack([centre_crop(Image.fromarray(frame), px, AREA) for frame in frames])
