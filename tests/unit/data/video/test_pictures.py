import io

import numpy as np
from PIL import Image

from dynamics.data.video.decode import Ends
from dynamics.data.video.pictures import read_pictures
from dynamics.data.video.sandbox import DecodeWorker, Rejected

RAMP = np.linspace(0, 255, 64).round().astype(np.uint8)
GREY = np.repeat(RAMP[None], 64, axis=0)
COLOURS = np.stack([GREY, GREY.T, 255 - GREY], axis=-1)


def encoded(image: Image.Image) -> bytes:
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return sink.getvalue()


def area_mean(image: np.ndarray) -> np.ndarray:
    return image.reshape(32, 2, 32, 2, 3).mean((1, 3))


def test_pictures_are_scaled_like_frames_and_keep_their_middle():
    wide = np.zeros((64, 192, 3), np.uint8)
    wide[:, 64:128] = COLOURS
    both = [encoded(Image.fromarray(pixels)) for pixels in (COLOURS, wide)]
    for frame in read_pictures(*both, 32).frames:
        assert frame.dtype == np.uint8
        assert abs(frame - area_mean(COLOURS)).mean() < 1.5


def test_the_worker_reads_pictures_and_survives_hostile_ones():
    good = encoded(Image.fromarray(COLOURS))
    worker = DecodeWorker(memory_mb=512, timeout_s=20)
    rng = np.random.default_rng(0)
    for _ in range(20):
        damaged = bytearray(good)
        for place in rng.integers(0, len(good), 10):
            damaged[place] ^= 1 << int(rng.integers(8))
        assert isinstance(worker.pictures(good, bytes(damaged), 32), Ends | Rejected)
    assert worker.pictures(good, encoded(Image.new("1", (9000, 9000))), 32) == Rejected(
        reason="too_large", detail="the picture has 9000x9000 pixels, more than 25,000,000"
    )
    ends = worker.pictures(good, encoded(Image.fromarray(COLOURS[::-1])), 32)
    assert isinstance(ends, Ends)
    np.testing.assert_array_equal(ends.frames[0], read_pictures(good, good, 32).frames[0])
    assert (ends.indices, ends.times_s) == ((0, 1), (0.0, 0.0))
    worker.close()
