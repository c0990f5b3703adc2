"""Pictures in messages: base64 of encoded files in requests, base64 of PNG in replies."""

import asyncio
import base64
import binascii
import io
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import unquote

import numpy as np
from PIL import Image

from dynamics.core.images import FORMATS, KINDS, PictureError, encode_png, read_picture
from dynamics.models.image_tokenizer import ImageTokenizer
from dynamics.serving.schemas import MAX_IMAGE_BYTES

_SMALL_PICTURE_BYTES, _SMALL_PICTURE_PIXELS = 2**16, 2**20
"""Most bytes of base64 and most pixels that are decoded without a thread, which would cost more."""
_FROM_URLS = str.maketrans("-_", "+/")
_large = ThreadPoolExecutor(1, thread_name_prefix="picture")
"""Decodes large pictures one at a time."""
MAX_HEAVY_PIXELS = 10_000_000
_HEAVY = ("WEBP", "AVIF")
"""Formats whose decoders take up to 18 bytes a pixel; the others take 9."""


async def to_frame(text: str, images: ImageTokenizer) -> np.ndarray:
    """The picture in a base64 text at the model's size, uint8 [H, W, 3].

    Raises:
        PictureError: as `from_base64` and `read_picture`; ``too_large``: a WebP or AVIF picture of
            more than `MAX_HEAVY_PIXELS`.
    """
    if _is_small(text):
        return fitted(text, images)
    return await asyncio.get_running_loop().run_in_executor(_large, fitted, text, images)


def fitted(text: str, images: ImageTokenizer) -> np.ndarray:
    """The picture in a base64 text at the model's size; as `to_frame`."""
    content = from_base64(text)
    kind, pixels = _header(content)
    if kind in _HEAVY and pixels > MAX_HEAVY_PIXELS:
        raise PictureError(
            "too_large",
            f"a WebP or AVIF picture may have {MAX_HEAVY_PIXELS:,} pixels, not {pixels:,}; "
            "send it smaller, or as PNG or JPEG",
        )
    return images.fit(read_picture(content, drop_alpha=images.bars is not None))


def _is_small(text: str) -> bool:
    is_short = len(text) <= _SMALL_PICTURE_BYTES
    return is_short and _header(from_base64(text))[1] <= _SMALL_PICTURE_PIXELS


def _header(content: bytes) -> tuple[str, int]:
    """Format and number of pixels; nothing of what `read_picture` refuses."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            return picture.format or "", picture.width * picture.height
    except Exception:  # codecs raise whatever they stumble over
        return "", 0


def from_base64(text: str) -> bytes:
    """The bytes of a base64 text.

    Also with line ends, without padding, in the alphabet for URLs, or as ``data:`` URL.

    Raises:
        PictureError: ``unreadable`` (not base64), or ``too_large``: more than `MAX_IMAGE_BYTES`.
    """
    head, comma, body = text.partition(",")
    if comma and head.lower().startswith("data:") and head.lower().endswith(";base64"):
        text = unquote(body)
    text = "".join(text.split()).rstrip("=").translate(_FROM_URLS)
    try:
        content = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise PictureError("unreadable", f"the picture is no base64 of a {KINDS} file") from error
    if len(content) > MAX_IMAGE_BYTES:
        raise PictureError("too_large", f"the picture has more than {MAX_IMAGE_BYTES:,} bytes")
    return content


def to_base64(frame_HW3: np.ndarray) -> str:
    """uint8 [H, W, 3] as base64 PNG."""
    # Frames are small: a better compression costs more time than it saves bytes.
    return base64.b64encode(encode_png(frame_HW3, compress_level=1)).decode()
