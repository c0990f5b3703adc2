"""Frames as small PNG files inside the page."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from dynamics.core.images import data_uri, encode_png

_LARGEST = 64
"""Side in pixels above which a frame is shrunk, so that hundreds of them fit into one page."""
_COLOURS = 64
"""Colours of a shrunk frame: photographs do not compress otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A PNG file that an ``img`` element can hold."""

    uri: str
    """``data:`` URI."""
    side: int
    """Width and height on the page, in CSS pixels: a whole multiple of the file's."""


def picture(frame_HW3: np.ndarray) -> Picture:
    """A square uint8 frame as picture; small ones pixel by pixel, large ones shrunk."""
    image = Image.fromarray(frame_HW3)
    if image.width > _LARGEST:
        shrunk = image.resize((_LARGEST, _LARGEST), Image.Resampling.LANCZOS)
        image = shrunk.quantize(_COLOURS)
    uri = data_uri(encode_png(image, compress_level=9))
    return Picture(uri=uri, side=_LARGEST // image.width * image.width)
