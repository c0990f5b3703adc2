"""Pictures as they travel: base64 or raw files in, PNG out, within limits.

A file is refused by its header where that says enough: 10 KB of PNG can hold 80 million pixels.
"""

import base64
import binascii
import io
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from dynamics.core.errors import UserError
from dynamics.serving.schemas import MAX_IMAGE_BYTES, MAX_PIXELS

FORMATS = ("PNG", "JPEG", "WEBP")


class TooLargeError(UserError):
    """More bytes or pixels than the service takes: status 413."""


def from_base64(text: str) -> bytes:
    """The bytes of a base64 text.

    Raises:
        UserError: it is not base64.
        TooLargeError: it holds more than `MAX_IMAGE_BYTES`.
    """
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError("image must be base64 of a PNG, JPEG or WebP file") from error
    if len(content) > MAX_IMAGE_BYTES:
        raise TooLargeError(f"image has more than {MAX_IMAGE_BYTES} bytes")
    return content


def open_picture(content: bytes) -> Image.Image:
    """A picture file as loaded picture.

    Raises:
        UserError: it is no picture, or a damaged one.
        TooLargeError: it has more than `MAX_PIXELS`; no pixel was decoded then.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            picture = Image.open(io.BytesIO(content), formats=FORMATS)
            if picture.width * picture.height > MAX_PIXELS:
                raise TooLargeError(f"image has more than {MAX_PIXELS} pixels")
            picture.load()
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise TooLargeError(f"image has more than {MAX_PIXELS} pixels") from error
        except UnidentifiedImageError as error:
            raise UserError("image must be a PNG, JPEG or WebP file") from error
        # Decoders report damage with whatever they stumble over.
        except (OSError, ValueError, SyntaxError, EOFError, IndexError) as error:
            raise UserError("image is damaged") from error
    return picture


def encode_png(frame_HW3: np.ndarray) -> str:
    """uint8 [H, W, 3] as base64 PNG."""
    buffer = io.BytesIO()
    # Frames are small: a better compression costs more time than it saves bytes.
    Image.fromarray(frame_HW3).save(buffer, format="PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode()
