"""What the rest of the system asks of a unified VLM.

B rows, L codes a frame, H = W = frame pixels, D feature width, T tokens, V vocabulary.
"""

from typing import Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class ImageTokenizer(Protocol):
    """Frames to codes and back (Chameleon's VQGAN, or the tiny FSQ tokenizer)."""

    frame_px: int
    """Side of the square frames that are encoded, in pixels."""
    num_tokens: int
    """Codes a frame, L."""
    num_codes: int
    """Size of the codebook; codes are 0 .. num_codes - 1."""

    def encode(self, frames_BHW3: np.ndarray) -> np.ndarray:
        """uint8 frames to int64 codes [B, L]."""

    def decode(self, codes_BL: np.ndarray) -> np.ndarray:
        """Codes to uint8 frames [B, H, W, 3]."""

    def features(self, frames_BHW3: np.ndarray) -> np.ndarray:
        """Features before quantisation, float32 [B, L, D]: the paper's recognition features."""
