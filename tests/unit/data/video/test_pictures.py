import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from dynamics.data.video.decode import BadClip, Ends
from dynamics.data.video.pictures import read_picture
from dynamics.data.video.sandbox import DecodeWorker, Rejected

RAMP = np.linspace(0, 255, 64).round().astype(np.uint8)
GREY = np.repeat(RAMP[None], 64, axis=0)
COLOURS = np.stack([GREY, GREY.T, 255 - GREY], axis=-1)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def reason_of(payload: bytes) -> str:
    with pytest.raises(BadClip) as caught:
        read_picture(payload, 32)
    return caught.value.reason


def area_mean(image: np.ndarray) -> np.ndarray:
    return image.reshape(32, 2, 32, 2, 3).mean((1, 3))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "JPEG"])
def test_every_format_gives_the_colours(kind):
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "JPEG" else {}
    frame = read_picture(encoded(Image.fromarray(COLOURS), kind, **options), 32)
    assert frame.shape == (32, 32, 3)
    assert frame.dtype == np.uint8
    assert abs(frame - area_mean(COLOURS)).mean() < (4 if kind == "JPEG" else 1.5)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_of_grey_keep_their_range(kind):
    deep = GREY.astype(np.uint16) * 257
    frame = read_picture(encoded(Image.fromarray(deep), kind), 32)
    assert abs(frame - area_mean(np.repeat(GREY[:, :, None], 3, axis=2))).mean() < 1.5


def test_cmyk_becomes_rgb():
    image = Image.new("CMYK", (64, 64), (0, 255, 255, 0))
    frame = read_picture(encoded(image, "JPEG"), 32)
    assert (frame[..., 0] > 200).all()
    assert (frame[..., 1:] < 60).all()


def test_transparent_pixels_show_white_whatever_colour_they_hide():
    image = np.zeros((64, 64, 4), np.uint8)
    image[:, :32] = (10, 200, 30, 255)
    image[:, 32:] = (200, 10, 10, 0)
    frame = read_picture(encoded(Image.fromarray(image, "RGBA")), 32)
    assert abs(frame[:, :14].astype(int) - (10, 200, 30)).max() <= 2
    assert (frame[:, 18:] == 255).all()


def test_palettes_with_and_without_transparency_are_read():
    palette = Image.fromarray(COLOURS).quantize(32)
    assert abs(read_picture(encoded(palette), 32) - area_mean(COLOURS)).mean() < 20
    one_clear = encoded(palette, transparency=palette.getpixel((0, 0)))
    assert (read_picture(one_clear, 32)[0, 0] > 200).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA"])
def test_grey_pictures_are_read(mode):
    frame = read_picture(encoded(Image.fromarray(GREY).convert(mode)), 32)
    assert (frame[..., 0] == frame[..., 2]).all()
    assert frame[:, 0].mean() < 40 < 200 < frame[:, -1].mean()


def test_the_camera_s_orientation_is_undone():
    exif = Image.Exif()
    exif[0x0112] = 6  # turned clockwise
    turned = np.rot90(COLOURS)
    frame = read_picture(encoded(Image.fromarray(turned), exif=exif), 32)
    assert abs(frame - area_mean(COLOURS)).mean() < 1.5


def test_the_middle_of_a_wide_picture_is_taken():
    wide = np.zeros((64, 192, 3), np.uint8)
    wide[:, 64:128] = COLOURS
    assert abs(read_picture(encoded(Image.fromarray(wide)), 32) - area_mean(COLOURS)).mean() < 1.5


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animated_pictures_are_rejected(kind):
    frames = [Image.fromarray(np.full((64, 64, 3), shade, np.uint8)) for shade in (0, 120, 250)]
    payload = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert reason_of(payload) == "animated"


def test_a_still_gif_is_read():
    frame = read_picture(encoded(Image.fromarray(COLOURS), "GIF"), 32)
    assert abs(frame - area_mean(COLOURS)).mean() < 30


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_truncated_pictures_are_rejected_not_filled_up(kind):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = encoded(Image.fromarray(noise), kind)
    assert reason_of(whole[: len(whole) // 2]) in ("truncated", "unreadable")


def png_of(width: int, height: int, colour_type: int = 0) -> bytes:
    """A valid black PNG of any size in a few bytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        checked = name + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", width, height, 1, colour_type, 0, 0, 0)
    packer = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [4001, 12_000, 30_000])
def test_a_bomb_is_refused_by_its_header(side):
    bomb = png_of(side, 100) if side == 30_000 else png_of(side, side)
    if side == 30_000:  # a header alone claims the rest
        bomb = bomb.replace(struct.pack(">II", side, 100), struct.pack(">II", side, side))
        bomb = bomb[:29] + struct.pack(">I", zlib.crc32(bomb[12:29])) + bomb[33:]
    assert len(bomb) < 100_000
    assert reason_of(bomb) == "too_large"


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "unreadable"),
        (b"not a picture", "unreadable"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n", "unreadable"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unreadable"),
        (encoded(Image.new("RGB", (8, 64))), "frame_size"),
        (encoded(Image.new("I", (64, 64)), "TIFF"), "pixel_format"),
        (encoded(Image.new("F", (64, 64)), "TIFF"), "pixel_format"),
    ],
)
def test_what_is_no_usable_picture_has_a_reason(payload, reason):
    assert reason_of(payload) == reason


def test_the_worker_reads_pictures_and_survives_hostile_ones():
    good = encoded(Image.fromarray(COLOURS))
    worker = DecodeWorker(memory_mb=512, timeout_s=20)
    rng = np.random.default_rng(0)
    for _ in range(20):
        damaged = bytearray(good)
        for place in rng.integers(0, len(good), 10):
            damaged[place] ^= 1 << int(rng.integers(8))
        assert isinstance(worker.pictures(good, bytes(damaged), 32), Ends | Rejected)
    assert worker.pictures(good, png_of(9000, 9000), 32) == Rejected(
        reason="too_large", detail="9000x9000 is more than 16,000,000 pixels"
    )
    ends = worker.pictures(good, encoded(Image.fromarray(COLOURS[::-1])), 32)
    assert isinstance(ends, Ends)
    np.testing.assert_array_equal(ends.frames[0], read_picture(good, 32))
    assert (ends.indices, ends.times_s) == ((0, 1), (0.0, 0.0))
    worker.close()
