from typing import Any

import numpy as np

from dynamics.data.units import EncodeWorker


class CountingImages:
    """Codes are the sums of a frame's rows; counts the frames that it sees."""

    seen = 0

    def encode_with_features(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.seen += len(frames)
        codes = frames.astype(np.int64).sum((2, 3))
        return codes, codes[..., None].astype(np.float32)


def test_equal_frames_are_encoded_once_and_found_in_all_their_places() -> None:
    images: Any = CountingImages()
    worker = EncodeWorker(lambda: images, Any, Any)  # type: ignore[arg-type]
    frames = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    frames = frames[[3, 1, 3, 0, 2, 1]]
    codes, features = worker._encoded(frames)
    assert images.seen == 4
    assert (codes == frames.astype(np.int64).sum((2, 3))).all()
    assert (features[..., 0] == codes).all()
