"""RGB pictures of any size to the square frames that an image tokenizer takes."""

import numpy as np
from PIL import Image

LANCZOS = Image.Resampling.LANCZOS
AREA = Image.Resampling.BOX
MAX_ASPECT = 8


def centre_crop(picture: Image.Image, px: int, resample: Image.Resampling = LANCZOS) -> np.ndarray:
    """uint8 [px, px, 3]: the shorter side resized to ``px``, the middle of the longer one kept.

    As Meta's code: the whole picture is resized first, then whole pixels are cut off. Of a strip
    only the middle is resized, which as a whole would take gigabytes.
    """
    widest, highest = (min(side, MAX_ASPECT * min(picture.size)) for side in picture.size)
    left, top = (picture.width - widest) // 2, (picture.height - highest) // 2
    picture = picture.crop((left, top, left + widest, top + highest))
    scale = px / min(picture.size)
    width, height = (max(px, round(scale * side)) for side in picture.size)
    left, top = (width - px) // 2, (height - px) // 2
    resized = picture.resize((width, height), resample)
    return np.array(resized.crop((left, top, left + px, top + px)))


def check_frames(frames_BHW3: np.ndarray, px: int) -> None:
    """Raise ValueError unless the frames are uint8 [B, px, px, 3]."""
    dtype, shape = frames_BHW3.dtype, frames_BHW3.shape
    if dtype != np.uint8 or shape[1:] != (px, px, 3):
        raise ValueError(f"frames must be uint8 [B, {(px, px, 3)}], got {dtype} {shape}")


def pad_to_square(picture: Image.Image, px: int, fill: tuple[int, int, int]) -> np.ndarray:
    """uint8 [px, px, 3]: nothing is cut; bars of colour ``fill`` on the shorter side."""
    side = max(picture.size)
    square = Image.new("RGB", (side, side), fill)
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return np.array(square.resize((px, px), LANCZOS))
