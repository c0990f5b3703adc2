"""An `ImageTokenizer` over any convolutional VQ model.

B rows, L codes a frame, D feature width, H = W = frame pixels.
"""

from copy import deepcopy
from functools import cached_property
from typing import Protocol, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dynamics.models.image_tokenizer import Precision
from dynamics.models.image_tokenizers.frames import centre_crop, check_frames, pad_to_square
from dynamics.models.image_tokenizers.fsq import to_pixels

_DTYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_PIXELS_PER_BATCH = 8 * 512 * 512
"""A 512 px frame needs about 1 GB inside a published encoder. A CPU takes one frame at a time: 8
frames of 256 px at once took 1.8 times as long."""


class VqModel(Protocol):
    """A frozen VQ model, a torch module; pixels are float [B, 3, H, W] in -1..1."""

    def to(self, dtype: torch.dtype) -> Self:
        """The model with its weights in another precision."""

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
        self.precision: Precision = "float32"
        self._model = model
        self._device = device
        self.batch_frames = 1 if device == "cpu" else max(1, _PIXELS_PER_BATCH // frame_px**2)

    def fit(self, picture: Image.Image) -> np.ndarray:
        """An RGB picture of any size as uint8 frame [H, W, 3], by the rule of the family."""
        if self.bars is None:
            return centre_crop(picture, self.frame_px)
        return pad_to_square(picture, self.frame_px, self.bars)

    def encode(self, frames_BHW3: np.ndarray) -> np.ndarray:
        """uint8 frames to int64 codes [B, L]."""
        return self.encode_with_features(frames_BHW3)[0]

    def encode_with_features(self, frames_BHW3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Codes, and the vectors that were looked up in the codebook, float32 [B, L, D]."""
        check_frames(frames_BHW3, self.frame_px)
        parts = [
            self._encoded(frames_BHW3[start : start + self.batch_frames])
            for start in range(0, len(frames_BHW3), self.batch_frames)
        ]
        codes, features = zip(*parts, strict=True)
        return np.concatenate(codes), np.concatenate(features)

    def decode(self, codes_BL: np.ndarray) -> np.ndarray:
        """Codes to uint8 frames [B, H, W, 3]."""
        frames = []
        for start in range(0, len(codes_BL), self.batch_frames):
            part = np.asarray(codes_BL[start : start + self.batch_frames], np.int64)
            codes = torch.as_tensor(part, device=self._device)
            with torch.inference_mode():
                frames.append(_truncated(self._network.pixels(codes).float()))
        return np.concatenate(frames)

    def _encoded(self, frames_BHW3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A batch of always the same shape, so that a frame's codes do not depend on its company.

        The codebook is searched in float32: its nearest entries often differ by less than bfloat16
        can tell.
        """
        missing = self.batch_frames - len(frames_BHW3)
        padded = np.pad(frames_BHW3, [(0, missing), (0, 0), (0, 0), (0, 0)])
        with torch.inference_mode():
            pixels = to_pixels(padded, self._device)
            features_BLD = self._network.features(pixels.to(_DTYPES[self.precision])).float()
            codes_BL = self._model.codes(features_BLD)
        kept = slice(len(frames_BHW3))
        return codes_BL[kept].cpu().numpy(), features_BLD[kept].cpu().numpy()

    @property
    def _network(self) -> VqModel:
        return self._half if self.precision == "bfloat16" else self._model

    @cached_property
    def _half(self) -> VqModel:
        # Not autocast: it keeps what lies between the products in float32, and on a GPU moving that
        # through memory is most of the time.
        return deepcopy(self._model).to(torch.bfloat16)


def _truncated(pixels_B3HW: Tensor) -> np.ndarray:
    """Pixels in about -1..1 to uint8 frames [B, H, W, 3], cut off as the authors' code does."""
    levels = ((pixels_B3HW.clamp(-1, 1) + 1) * 127.5).byte()
    frames: np.ndarray = levels.permute(0, 2, 3, 1).cpu().numpy()
    return frames
