"""Pictures: one reader for every encoded picture that comes in, and PNG bytes of what goes out."""

import base64
import io
import warnings

import numpy as np
from PIL import AvifImagePlugin, Image, ImageOps, PngImagePlugin

from dynamics.core.errors import UserError
from dynamics.core.places import Place

FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM")
"""Formats whose readers do nothing but read (the one of EPS starts a program). JPEG includes the
files of phones that hold several pictures (MPO)."""
KINDS = "PNG, JPEG, WebP, AVIF, GIF, BMP, TIFF or PPM"
MAX_PIXELS = 25_000_000
"""Larger pictures are refused by their header: ten kilobytes can claim gigabytes of pixels."""
MIN_SIDE_PX = 16
_BAND_PIXELS = 2**20

# Programs that draw leave their whole recipe in a PNG's compressed texts.
PngImagePlugin.MAX_TEXT_CHUNK = 8 * 2**20
# A thread per core would ask a limited process for more stacks than it may have.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1


class PictureError(UserError):
    """One line about a picture that cannot be used; ``reason`` is one word, for counting."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def read_picture(source: bytes | Place, *, drop_alpha: bool = False) -> Image.Image:
    """An encoded picture as a viewer shows it (`to_rgb`); the first one of several in a file.

    ``drop_alpha`` leaves the colours below transparent pixels as they are, in place of white: the
    authors of models that square a picture with bars (Liquid, Janus) do, those of Chameleon do not.

    Raises:
        PictureError: ``unreadable``, ``too_large``, ``frame_size``, ``pixel_format`` or
            ``truncated``. The first four are known before any pixel is decoded.
    """
    content = picture_bytes(source)
    name = "the picture" if isinstance(source, bytes) else str(source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are about metadata, which is not used
        try:
            picture = Image.open(io.BytesIO(content), formats=FORMATS)
        except MemoryError:
            raise
        except Image.DecompressionBombError as error:
            detail = f"{name} has more than {MAX_PIXELS:,} pixels"
            raise PictureError("too_large", detail) from error
        except Exception as error:  # codecs raise whatever they stumble over
            raise PictureError("unreadable", f"{name} is no {KINDS} file") from error
        with picture:
            _check_header(picture, name)
            try:
                ImageOps.exif_transpose(picture, in_place=True)
                return _upright_to_rgb(picture, drop_alpha)
            except MemoryError:
                raise
            except Exception as error:
                detail = f"{name} is damaged ({type(error).__name__}: {error})"[:200]
                raise PictureError("truncated", detail) from error


def picture_bytes(source: bytes | Place) -> bytes:
    """The bytes of an encoded picture, given as such or as a file.

    Raises:
        PictureError: ``unreadable``.
    """
    try:
        return source.read_bytes() if isinstance(source, Place) else source
    except OSError as error:
        raise PictureError("unreadable", f"{source!s} cannot be read: {error.strerror}") from error


def _check_header(picture: Image.Image, name: str) -> None:
    """Refuse a picture whose pixels must not be decoded."""
    width, height = picture.size
    if width * height > MAX_PIXELS:
        detail = f"{name} has {width}x{height} pixels, more than {MAX_PIXELS:,}"
        raise PictureError("too_large", detail)
    if min(width, height) < MIN_SIDE_PX:
        detail = f"{name} has {width}x{height} pixels, less than {MIN_SIDE_PX} a side"
        raise PictureError("frame_size", detail)
    if picture.mode in ("I", "F", "LAB"):  # nothing says which value is white
        detail = f"{name} has pixels of mode {picture.mode}; save it with 8 bits a colour"
        raise PictureError("pixel_format", detail)


def to_rgb(picture: Image.Image) -> Image.Image:
    """RGB: turned as EXIF says, transparent pixels on white, 16 bits a pixel scaled to 8."""
    return _upright_to_rgb(ImageOps.exif_transpose(picture), drop_alpha=False)


def _upright_to_rgb(upright: Image.Image, drop_alpha: bool) -> Image.Image:
    if upright.mode == "RGB" and (drop_alpha or not upright.has_transparency_data):
        return upright
    # By bands, without copies of the whole: a large picture has up to 100 MB.
    rgb = Image.new("RGB", upright.size)
    rows = max(1, _BAND_PIXELS // upright.width)
    for top in range(0, upright.height, rows):
        bottom = min(top + rows, upright.height)
        band = upright.crop((0, top, upright.width, bottom))
        rgb.paste(_band_to_rgb(band, drop_alpha), (0, top))
    return rgb


def _band_to_rgb(band: Image.Image, drop_alpha: bool) -> Image.Image:
    if band.mode.startswith("I;16"):
        grey_HW = (np.asarray(band).astype(np.uint32) + 128) // 257
        band = Image.fromarray(grey_HW.astype(np.uint8))
    if band.has_transparency_data and not drop_alpha:
        layer = band if band.mode == "RGBA" else band.convert("RGBA")
        band = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return band if band.mode == "RGB" else band.convert("RGB")


def encode_png(picture: Image.Image | np.ndarray, compress_level: int = 6) -> bytes:
    """Lossless PNG of a picture or a uint8 frame [H, W, 3]; equal bytes for equal pixels.

    ``compress_level`` is zlib's, 0 to 9.
    """
    sink = io.BytesIO()
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(sink, format="PNG", compress_level=compress_level)
    return sink.getvalue()


def frame_of(png: bytes) -> np.ndarray:
    """The uint8 frame [H, W, 3] of a PNG file that `encode_png` made."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def data_uri(payload: bytes, kind: str = "png") -> str:
    """A picture's file as ``data:`` URI."""
    return f"data:image/{kind};base64,{base64.b64encode(payload).decode()}"
