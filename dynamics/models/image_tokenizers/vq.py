"""An `ImageTokenizer` over any convolutional VQ model.

B rows, L codes a frame, D feature width, H = W = frame pixels.
"""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dynamics.models.image_tokenizers.frames import centre_crop, check_frames, pad_to_square
from dynamics.models.image_tokenizers.fsq import to_frames, to_pixels

_PIXELS_PER_BATCH = 4 * 512 * 512
"""A 512 px frame needs about 1 GB inside a published encoder."""


class VqModel(Protocol):
    """A frozen VQ model; pixels are float [B, 3, H, W] in -1..1."""

    def features(self, pixels_B3HW: Tensor) -> Tensor:
        """Vectors to look up in the codebook, [B, L, D]."""

    def codes(self, features_BLD: Tensor) -> Tensor:
        """Nearest code of each feature, int64 [B, L]."""

    def pixels(self, codes_BL: Tensor) -> Tensor:
        """Pixels of codes, about -1..1."""


class VqTokenizer:
    """Frames to codes and back through a frozen VQ model on ``device``."""

    def __init__(
        self,
        model: VqModel,
        *,
        frame_px: int,
        num_tokens: int,
        num_codes: int,
        bars: tuple[int, int, int] | None,
        device: str,
    ) -> None:
        self.frame_px = frame_px
        self.bars = bars
        self.num_tokens = num_tokens
        self.num_codes = num_codes
        self._model = model
        self._device = device
        self._batch = max(1, _PIXELS_PER_BATCH // frame_px**2)

    def fit(self, picture: Image.Image) -> np.ndarray:
        """An RGB picture of any size as uint8 frame [H, W, 3], by the rule of the family."""
        if self.bars is None:
            return centre_crop(picture, self.frame_px)
        return pad_to_square(picture, self.frame_px, self.bars)

    def encode(self, frames_BHW3: np.ndarray) -> np.ndarray:
        """uint8 frames to int64 codes [B, L]."""
        parts = [self._model.codes(part).cpu() for part in self._features(frames_BHW3)]
        return np.concatenate([part.numpy() for part in parts])

    def features(self, frames_BHW3: np.ndarray) -> np.ndarray:
        """Vectors to look up in the codebook, float32 [B, L, D]."""
        parts = [part.float().cpu() for part in self._features(frames_BHW3)]
        return np.concatenate([part.numpy() for part in parts])

    def decode(self, codes_BL: np.ndarray) -> np.ndarray:
        """Codes to uint8 frames [B, H, W, 3]."""
        frames = []
        for start in range(0, len(codes_BL), self._batch):
            codes = torch.as_tensor(
                np.asarray(codes_BL[start : start + self._batch], np.int64), device=self._device
            )
            with torch.inference_mode():
                frames.append(to_frames(self._model.pixels(codes)))
        return np.concatenate(frames)

    def _features(self, frames_BHW3: np.ndarray) -> Iterator[Tensor]:
        check_frames(frames_BHW3, self.frame_px)
        for start in range(0, len(frames_BHW3), self._batch):
            pixels = to_pixels(frames_BHW3[start : start + self._batch]).to(self._device)
            with torch.inference_mode():
                yield self._model.features(pixels)
