"""A model's frames back in the benchmark's pictures.

A model sees a picture as it was trained on: its middle, or all of it between bars. P is the side of
its square frame in pixels.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]


def placed(frame: Pixels, picture: Image.Image, bars: tuple[int, int, int] | None) -> Image.Image:
    """The picture with a frame, uint8 [P, P, 3], drawn over what the frame shows of it.

    Of a model that sees the middle, the rest stays as it was; of one that sees ``bars``, these are
    cut off.
    """
    side = (min if bars is None else max)(picture.size)
    square = fitted(Image.fromarray(frame), (side, side))
    shown = picture.copy()
    shown.paste(square, ((picture.width - side) // 2, (picture.height - side) // 2))
    return shown


def fitted(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The picture at another (width, height), bicubic; itself when it has that size.

    The filter is part of the protocol: with any other, the copy baseline's L1 on MagicBrush is
    not the published one.
    """
    return picture if picture.size == size else picture.resize(size, Image.Resampling.BICUBIC)
