"""Pictures to frames: any usual still, upright, without transparency, in eight bits a colour.

Runs in the limited process of `dynamics.data.video.worker`: codecs parse hostile bytes in C.
"""

import io
import warnings

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image, ImageOps, UnidentifiedImageError

from dynamics.data.video.decode import MIN_SIDE_PX, BadClip, Bars, Ends, square

MAX_PIXELS = 16 * 10**6
"""Larger pictures are refused by their header: ten kilobytes can claim gigabytes of pixels."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Formats whose readers do nothing but read (the one of EPS starts a program)."""
_PAPER = (255, 255, 255, 255)
"""Behind transparent pixels: what a viewer shows."""


def read_pictures(before: bytes, after: bytes, frame_px: int, bars: Bars = None) -> Ends:
    """Two encoded pictures as frames.

    Raises:
        BadClip: as `read_picture`.
    """
    frames = np.stack([read_picture(payload, frame_px, bars) for payload in (before, after)])
    return Ends(frames=frames)


def read_picture(payload: bytes, frame_px: int, bars: Bars = None) -> np.ndarray:
    """One encoded picture as uint8 [frame_px, frame_px, 3], RGB, upright, squared as ``bars`` says.

    Scaled like a frame of a video, so that a pool of videos and a seed of pictures look alike.

    Raises:
        BadClip: ``unreadable``, ``too_large``, ``frame_size``, ``animated``, ``pixel_format`` or
            ``truncated``.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata, which is not used
        try:
            picture = Image.open(io.BytesIO(payload), formats=FORMATS)
        except Image.DecompressionBombError as error:
            raise BadClip("too_large", str(error)) from error
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
            raise BadClip("unreadable", "no picture in a known format") from error
        with picture:
            _check(picture)
            rgb_HW3 = _rgb(_loaded(picture))
    frame = av.VideoFrame.from_ndarray(rgb_HW3, format="rgb24")
    return square(VideoReformatter(), frame, frame_px, bars)


def _check(picture: Image.Image) -> None:
    """Refuse by the header what must not be decoded."""
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise BadClip("too_large", f"{width}x{height} is more than {MAX_PIXELS:,} pixels")
    if min(width, height) < MIN_SIDE_PX:
        raise BadClip("frame_size", f"{width}x{height}")
    if getattr(picture, "n_frames", 1) > 1:
        raise BadClip("animated", f"{picture.n_frames} frames")  # type: ignore[attr-defined]
    if picture.mode in ("I", "F"):  # nothing says which value is white
        raise BadClip("pixel_format", f"mode {picture.mode}")


def _loaded(picture: Image.Image) -> Image.Image:
    """Decoded, and upright whatever the camera's orientation was."""
    try:
        picture.load()
        return ImageOps.exif_transpose(picture)
    except MemoryError:
        raise
    except Exception as error:  # codecs raise OSError, SyntaxError, struct.error, ...
        raise BadClip("truncated", f"{type(error).__name__}: {error}"[:200]) from error


def _rgb(picture: Image.Image) -> np.ndarray:
    """uint8 [H, W, 3]."""
    if picture.mode.startswith("I;16"):
        grey_HW = (np.asarray(picture).astype(np.uint32) + 128) // 257
        return np.repeat(grey_HW.astype(np.uint8)[:, :, None], 3, axis=2)
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, _PAPER), picture)
    return np.ascontiguousarray(picture.convert("RGB"))
