"""The image tokenizer of a driver: large frames are decoded where there is a GPU, or other nodes.

B rows, L codes a frame, H = W frame pixels.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import pyarrow as pa
from PIL import Image

from dynamics.core.config import LoopConfig
from dynamics.core.progress import silent
from dynamics.models import load_image_tokenizer
from dynamics.models.image_tokenizer import ImageTokenizer
from dynamics.storage.shards import Shard, cut
from dynamics.storage.streams import Done, RunStream, Stream

_FRAMES_AT_ONCE = 8
_PIXELS_HERE = 512 * 512
"""Most pixels that a driver decodes itself: a frame of a 7B model takes a CPU as many seconds as a
stream takes to start, and hundreds of tiny ones take none."""


def driver_images(cfg: LoopConfig, run: RunStream, *, elsewhere: bool) -> ImageTokenizer:
    """The run's image tokenizer; with ``elsewhere`` it decodes by ``run``."""
    load = partial(load_image_tokenizer, cfg.model.family, cfg.base_path())
    images = load("cpu")
    return StreamedImages(images, partial(load, cfg.model.device), run) if elsewhere else images


class StreamedImages:
    """An `ImageTokenizer` that decodes by a stream what is too much for it, and does the rest."""

    def __init__(
        self, images: ImageTokenizer, load: Callable[[], ImageTokenizer], run: RunStream
    ) -> None:
        self.frame_px = images.frame_px
        self.bars = images.bars
        self.num_tokens = images.num_tokens
        self.num_codes = images.num_codes
        self.precision = images.precision
        self.fit: Callable[[Image.Image], np.ndarray] = images.fit
        self.encode: Callable[[np.ndarray], np.ndarray] = images.encode
        self.encode_with_features = images.encode_with_features
        self._decode: Callable[[np.ndarray], np.ndarray] = images.decode
        self._load = load
        self._run = run

    def decode(self, codes_BL: np.ndarray) -> np.ndarray:
        """Codes to uint8 frames [B, H, W, 3]."""
        if len(codes_BL) * self.frame_px**2 <= _PIXELS_HERE:
            return self._decode(codes_BL)
        frames_BHW3 = np.empty((len(codes_BL), self.frame_px, self.frame_px, 3), np.uint8)
        stream = Stream(
            what="decode frames",
            items=cut(len(codes_BL), _FRAMES_AT_ONCE),
            total=len(codes_BL),
            read=partial(_codes, codes_BL),
            make_worker=partial(DecodeWorker, self._load),
        )
        for done in self._run(stream, silent):
            assert done.found is not None
            for row, frame in zip(*(done.found[name] for name in ("row", "frame")), strict=True):
                pixels = np.frombuffer(frame.as_buffer(), np.uint8)
                frames_BHW3[row.as_py()] = pixels.reshape(frames_BHW3.shape[1:])
        return frames_BHW3


class DecodeWorker:
    """An image tokenizer that draws what codes stand for."""

    def __init__(self, load: Callable[[], ImageTokenizer]) -> None:
        self._images = load()

    def run(self, item: Shard, rows: pa.Table) -> Done:
        """The frames of some codes: ``row``, and ``frame`` as bytes."""
        frames = self._images.decode(np.array(rows["codes"].to_pylist(), np.int64))
        places = range(item.start, item.stop)
        found = pa.table({"row": places, "frame": [frame.tobytes() for frame in frames]})
        return Done(count=len(frames), found=found)


def _codes(codes_BL: np.ndarray, item: Shard) -> pa.Table:
    return pa.table({"codes": list(codes_BL[item.start : item.stop])})
