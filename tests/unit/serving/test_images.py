import base64

import numpy as np
import pytest

from dynamics.core.images import PictureError, read_picture
from dynamics.serving.images import from_base64, to_base64


def test_too_many_bytes_are_refused() -> None:
    with pytest.raises(PictureError, match="more than 4,194,304 bytes") as caught:
        from_base64(base64.b64encode(bytes(4 * 2**20 + 1)).decode())
    assert caught.value.reason == "too_large"


def test_what_is_no_base64_is_refused() -> None:
    with pytest.raises(PictureError, match="no base64 of a PNG"):
        from_base64("no picture")


def test_a_frame_survives_the_journey() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert np.array_equal(np.array(read_picture(from_base64(to_base64(frame)))), frame)
