"""Resizing of the benchmark's pictures.

H, W are a picture's own sides in pixels, P is the side of the square frame that a model sees.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]


def to_frame(picture: Image.Image, side_px: int) -> Pixels:
    """The whole picture squeezed into uint8 [P, P, 3].

    Squeezed, not cropped, so that nothing of the picture is lost and a prediction can be
    stretched back over the target.
    """
    shrinks = picture.width >= side_px and picture.height >= side_px
    how = Image.Resampling.BOX if shrinks else Image.Resampling.BICUBIC
    return np.array(picture.resize((side_px, side_px), how))


def fitted(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The picture at another (width, height), bicubic; itself when it has that size.

    The filter is part of the protocol: with any other, the copy baseline's L1 on MagicBrush is
    not the published one.
    """
    return picture if picture.size == size else picture.resize(size, Image.Resampling.BICUBIC)
