"""Small moving scenes, and a tokenizer whose codes can be computed by hand."""

from collections.abc import Callable

import numpy as np
import pytest

COLOURS = np.array([[230, 40, 35], [35, 190, 65], [50, 97, 250], [247, 220, 46]], dtype=np.uint8)


class BlockTokenizer:
    """4x4 codes a frame, the mean grey of each block; features are its mean colour."""

    frame_px = 32
    bars = None
    num_tokens = 16
    num_codes = 256

    def encode(self, frames_BHW3: np.ndarray) -> np.ndarray:
        return self.features(frames_BHW3).mean(-1).round().astype(np.int64)

    def features(self, frames_BHW3: np.ndarray) -> np.ndarray:
        blocks = frames_BHW3.reshape(-1, 4, 8, 4, 8, 3).mean((2, 4), dtype=np.float32)
        return blocks.reshape(-1, 16, 3)

    def decode(self, codes_BL: np.ndarray) -> np.ndarray:
        raise NotImplementedError


@pytest.fixture
def images() -> BlockTokenizer:
    return BlockTokenizer()


@pytest.fixture
def film() -> Callable[..., np.ndarray]:
    """Frames of a table on which one of three squares jumps every ``hold`` frames."""

    def make(
        seed: int, *, num_actions: int = 6, hold: int = 3, size: int = 128, noise: int = 3
    ) -> np.ndarray:
        rng = np.random.default_rng(seed)
        cell = size // 4
        places = rng.permutation(16)[:3]
        states = [places.copy()]
        for _ in range(num_actions):
            free = np.setdiff1d(np.arange(16), places)
            places[rng.integers(3)] = rng.choice(free)
            states.append(places.copy())
        frames = []
        for state in states:
            canvas = np.full((size, size, 3), 70, dtype=np.int16)
            for place, colour in zip(state, COLOURS, strict=False):
                top, left = place // 4 * cell + cell // 5, place % 4 * cell + cell // 5
                canvas[top : top + cell * 3 // 5, left : left + cell * 3 // 5] = colour
            frames += [
                np.clip(canvas + rng.integers(-noise, noise + 1, canvas.shape), 0, 255)
                for _ in range(hold)
            ]
        return np.stack(frames).astype(np.uint8)

    return make
