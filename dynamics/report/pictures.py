"""Frames that are shown: decoded all at once, and inside the page as small PNG files."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from PIL import Image

from dynamics.core.images import data_uri, encode_png
from dynamics.models.image_tokenizer import ImageTokenizer
from dynamics.storage.tables import codes_matrix

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


class Frames:
    """The frames of some tables, decoded in one call, each distinct one once.

    A call may be a stream on a cluster, which takes seconds to start.

    Args:
        images: decodes the frames.
        tables: their columns ``..._codes`` are codes, or null.
    """

    def __init__(self, images: ImageTokenizer, tables: Iterable[pa.Table]) -> None:
        codes = {
            codes_L.tobytes(): codes_L
            for table in tables
            for column in table.column_names
            if column.endswith("_codes")
            for codes_L in codes_matrix(table.filter(table[column].is_valid()), column)
        }
        decoded = images.decode(np.stack(list(codes.values()))) if codes else ()
        self._known: dict[bytes, np.ndarray] = dict(zip(codes, decoded, strict=True))

    def of(self, codes: list[int]) -> np.ndarray:
        """A frame of the tables, uint8 [H, W, 3]."""
        return self._known[np.array(codes, np.int64).tobytes()]
