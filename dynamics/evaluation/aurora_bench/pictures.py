"""Pictures of the benchmark, and the one way they are resized.

H, W are a picture's own sides in pixels, P is the side of the square frame that a model sees.
"""

import io
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

Pixels = NDArray[np.uint8]

MAX_PIXELS = 50_000_000
"""More are refused before they are decoded: a small file can unpack into gigabytes."""


class UnreadablePictureError(Exception):
    """Why a picture cannot be used, as a short reason that reports count."""


def open_picture(path: Path) -> Image.Image:
    """The whole picture as RGB, whatever its file's mode; alpha is dropped, not blended.

    Raises:
        UnreadablePictureError: not a picture, cut off, or larger than MAX_PIXELS.
    """
    try:
        with warnings.catch_warnings():
            # The limit below is the one that counts.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise UnreadablePictureError("picture_too_large")
                return picture.convert("RGB")
    except Image.DecompressionBombError as error:
        raise UnreadablePictureError("picture_too_large") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise UnreadablePictureError("unreadable_picture") from error


def to_frame(picture: Image.Image, side_px: int) -> Pixels:
    """The whole picture squeezed into uint8 [P, P, 3].

    Squeezed, not cropped, so that nothing of the picture is lost and a prediction can be
    stretched back over the target.
    """
    shrinks = picture.width >= side_px and picture.height >= side_px
    how = Image.Resampling.BOX if shrinks else Image.Resampling.BICUBIC
    return np.array(picture.resize((side_px, side_px), how))


def fitted(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The picture at another (width, height), bicubic; itself when the size is right already.

    The filter is part of the protocol: with any other, the copy baseline's L1 on MagicBrush is
    not the published one.
    """
    return picture if picture.size == size else picture.resize(size, Image.Resampling.BICUBIC)


def to_png(frame_HW3: Pixels) -> bytes:
    """Lossless bytes of a frame."""
    sink = io.BytesIO()
    Image.fromarray(frame_HW3).save(sink, format="PNG")
    return sink.getvalue()


def from_png(payload: bytes) -> Image.Image:
    """Inverse of `to_png`."""
    with Image.open(io.BytesIO(payload), formats=["PNG"]) as picture:
        return picture.convert("RGB")
