"""What the rest of the system asks of a unified VLM, and what a family must bring for it.

A family is a module with the three functions of `Family`. What `Family.load` returns is a
`dynamics.models.vlm.UnifiedVLM`, which holds

- ``images``: an `ImageTokenizer`, frames to codes and back;
- ``tokens``: a `dynamics.models.tokens.Tokens`, texts and codes to rows of vocabulary ids, by the
  checkpoint's own vocabulary and prompts;
- ``hidden``, ``logits``, ``image_logits``: the language model, without any mask over image ids.

Everything else (adapters, decoding, training, labelling, serving) is written once, over these.

B rows, L codes a frame, H = W = frame pixels, D feature width, T tokens, V vocabulary.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from dynamics.models.tokens import Tokens
    from dynamics.models.vlm import UnifiedVLM


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

    def fit(self, picture: Image.Image) -> np.ndarray:
        """A picture of any size as uint8 frame [H, W, 3], squared by the model's rule."""

    def encode(self, frames_BHW3: np.ndarray) -> np.ndarray:
        """uint8 frames to int64 codes [B, L]."""

    def decode(self, codes_BL: np.ndarray) -> np.ndarray:
        """Codes to uint8 frames [B, H, W, 3]."""

    def features(self, frames_BHW3: np.ndarray) -> np.ndarray:
        """Features before quantisation, float32 [B, L, D]: the paper's recognition features."""


class Family(Protocol):
    """A module of `dynamics.models.FAMILIES`."""

    def load(self, base: Path, device: str) -> "UnifiedVLM":
        """The unified VLM of a checkpoint folder in the Hugging Face layout.

        Raises:
            UserError: the folder is missing, incomplete, or holds another model.
        """

    def load_image_tokenizer(self, base: Path, device: str) -> ImageTokenizer:
        """The image tokenizer of a checkpoint folder, without its language model.

        Raises:
            UserError: as `load`.
        """

    def load_tokens(self, base: Path, images: ImageTokenizer) -> "Tokens":
        """The token layouts of a checkpoint folder, without its language model.

        Raises:
            UserError: as `load`.
        """
