"""Interface of the image tokenizers."""

from typing import Literal, Protocol, runtime_checkable

import numpy as np
from PIL import Image

Precision = Literal["float32", "bfloat16"]


@runtime_checkable
class ImageTokenizer(Protocol):
    """Frames to codes and back (a VQGAN of a published model, or the tiny FSQ tokenizer)."""

    frame_px: int
    """Side of the square frames that are encoded, in pixels."""
    bars: tuple[int, int, int] | None
    """RGB of the bars that make a picture square; None = the middle of its longer side is kept."""
    num_tokens: int
    """Codes a frame, L."""
    num_codes: int
    """Size of the codebook; codes are 0 .. num_codes - 1."""
    precision: Precision
    """Precision of the networks' products; a small tokenizer may ignore it."""

    def fit(self, picture: Image.Image) -> np.ndarray:
        """An RGB picture of any size as uint8 frame [H, W, 3], squared by the model's rule."""

    def encode(self, frames_BHW3: np.ndarray) -> np.ndarray:
        """uint8 frames to int64 codes [B, L]."""

    def encode_with_features(self, frames_BHW3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Codes and the features before quantisation, float32 [B, L, D], of one encoder pass.

        The features are the paper's recognition features. A frame's result does not depend on the
        frames beside it.
        """

    def decode(self, codes_BL: np.ndarray) -> np.ndarray:
        """Codes to uint8 frames [B, H, W, 3]."""
