"""Small moving scenes, and a tokenizer whose codes can be computed by hand."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dynamics.data.units import Encoding
from dynamics.models.image_tokenizer import ImageTokenizer


class BlockTokenizer:
    """4x4 codes a frame, the mean grey of each block; features are its mean colour."""

    frame_px = 32
    bars = None
    num_tokens = 16
    num_codes = 256

    def encode(self, frames_BHW3: np.ndarray) -> np.ndarray:
        return self.encode_with_features(frames_BHW3)[0]

    def encode_with_features(self, frames_BHW3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        blocks = frames_BHW3.reshape(-1, 4, 8, 4, 8, 3).mean((2, 4), dtype=np.float32)
        features_BLD = blocks.reshape(-1, 16, 3)
        return features_BLD.mean(-1).round().astype(np.int64), features_BLD

    def decode(self, codes_BL: np.ndarray) -> np.ndarray:
        raise NotImplementedError


def encoding_with(load: Callable[[], ImageTokenizer], codes: Path) -> Encoding:
    """Encodes with a tokenizer of which there is one precision."""
    return Encoding(codes=codes, load=lambda _: load(), decide=lambda *_: "float32")


@pytest.fixture
def images() -> BlockTokenizer:
    return BlockTokenizer()
