"""Odd picture files, and that every reader gives the same pixels or the same refusal."""

import asyncio
import base64
import io
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dynamics.client import open_image
from dynamics.core.images import PictureError, data_uri, encode_png, read_picture, to_rgb
from dynamics.data.video.decode import Ends
from dynamics.data.video.sandbox import DecodeWorker
from dynamics.evaluation.aurora_bench.dataset import read_benchmark
from dynamics.serving.images import to_frame
from tests.bench import write_bench

RAMP = np.linspace(0, 255, 32).round().astype(np.uint8)
GREY = np.repeat(RAMP[None], 32, axis=0)
COLOURS = np.stack([GREY, GREY.T, 255 - GREY], axis=-1)
PLAIN = Image.fromarray(COLOURS)
DARK, LIGHT = (Image.new("RGB", (32, 32), (shade, shade, shade)) for shade in (40, 220))
NOISE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    sink = io.BytesIO()
    image.copy().save(sink, kind, **options)  # an encoder leaves its settings in the picture
    return sink.getvalue()


def turned(orientation: int, picture: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(picture, exif=exif)


def with_long_texts() -> PngInfo:
    """Compressed texts as programs that draw leave them, beyond Pillow's own bound of 1 MiB."""
    info = PngInfo()
    info.add_text("workflow", "x" * 3_000_000, zip=True)
    info.add_itxt("prompt", "y" * 2_000_000, zip=True)
    return info


def half_clear() -> Image.Image:
    pixels = np.full((32, 32, 4), (10, 200, 30, 255), np.uint8)
    pixels[:, 16:] = (200, 10, 10, 0)
    return Image.fromarray(pixels)


def png_of(width: int, height: int) -> bytes:
    """A black PNG of any claimed size in a few bytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        checked = name + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    data = zlib.compress(bytes((1 + (width + 7) // 8) * min(height, 100)), 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


ON_WHITE = np.where(np.arange(32)[:, None] < 16, (10, 200, 30), (255, 255, 255))[None].repeat(32, 0)
GREYS = np.repeat(GREY[:, :, None], 3, axis=2)
SIXTEEN = Image.fromarray(GREY.astype(np.uint16) * 257)

GOOD = {
    **{kind: (encoded(PLAIN, kind), COLOURS, 0) for kind in ("PNG", "BMP", "TIFF", "PPM")},
    "lossless WebP": (encoded(PLAIN, "WEBP", lossless=True), COLOURS, 0),
    "JPEG": (encoded(PLAIN, "JPEG", quality=95), COLOURS, 4),
    "progressive JPEG": (encoded(PLAIN, "JPEG", quality=95, progressive=True), COLOURS, 4),
    "JPEG with bytes behind it": (encoded(PLAIN, "JPEG", quality=95) + bytes(500), COLOURS, 4),
    "AVIF": (encoded(PLAIN, "AVIF", quality=95), COLOURS, 6),
    "GIF": (encoded(PLAIN.convert("L"), "GIF"), np.array(PLAIN.convert("L").convert("RGB")), 0),
    "MPO": (encoded(DARK, "MPO", save_all=True, append_images=[LIGHT.copy()]), np.array(DARK), 1),
    **{
        f"animated {kind}": (
            encoded(DARK, kind, save_all=True, append_images=[LIGHT.copy()], **options),
            np.array(DARK),
            1,
        )
        for kind, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {}))
    },
    "PNG with long texts": (encoded(PLAIN, pnginfo=with_long_texts()), COLOURS, 0),
    "16-bit PNG": (encoded(SIXTEEN), GREYS, 0),
    "16-bit TIFF": (encoded(SIXTEEN, "TIFF"), GREYS, 0),
    "black and white": (encoded(Image.fromarray(GREY > 99)), 255 * (GREYS > 99), 0),
    "grey with alpha": (encoded(Image.fromarray(GREY).convert("LA")), GREYS, 0),
    "palette": (encoded(DARK.quantize(8)), np.array(DARK), 0),
    "palette, one colour clear": (
        encoded(DARK.quantize(8), transparency=DARK.quantize(8).getpixel((0, 0))),
        np.full((32, 32, 3), 255),
        0,
    ),
    "alpha": (encoded(half_clear()), ON_WHITE, 0),
    "CMYK": (encoded(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "JPEG"), (254, 0, 0), 3),
    "turned by the camera": (turned(6, PLAIN), np.rot90(COLOURS, -1), 0),
    "mirrored by the camera": (turned(2, PLAIN), COLOURS[:, ::-1], 0),
}
BAD = {
    "empty": (b"", "unreadable"),
    "text": (b"not a picture", "unreadable"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unreadable"),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n", "unreadable"),
    "ICO": (encoded(PLAIN, "ICO"), "unreadable"),
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(60), "unreadable"),
    "32-bit TIFF": (encoded(Image.new("I", (32, 32)), "TIFF"), "pixel_format"),
    "float TIFF": (encoded(Image.new("F", (32, 32)), "TIFF"), "pixel_format"),
    "LAB TIFF": (encoded(Image.new("LAB", (32, 32)), "TIFF"), "pixel_format"),
    "8 pixels wide": (encoded(Image.new("RGB", (8, 64))), "frame_size"),
    "just too many pixels": (png_of(5001, 5000), "too_large"),
    "bomb": (png_of(12_000, 12_000), "too_large"),
    "gigapixels": (png_of(30_000, 30_000), "too_large"),
    **{
        f"truncated {kind}": (encoded(Image.fromarray(NOISE), kind, **options)[:-600], "truncated")
        for kind, options in (("PNG", {}), ("JPEG", {"quality": 95}), ("BMP", {}), ("PPM", {}))
    },
}


def by_label_set(worker: DecodeWorker, payload: bytes) -> np.ndarray | str:
    """Pixels or a reason, as labelled sets read: in the limited process."""
    ends = worker.pictures(payload, encoded(PLAIN), 32)
    return ends.frames[0] if isinstance(ends, Ends) else ends.reason


def by_service(payload: bytes) -> np.ndarray | str:
    images = SimpleNamespace(fit=np.array, bars=None)
    try:
        return asyncio.run(to_frame(base64.b64encode(payload).decode(), images))
    except PictureError as error:
        return error.reason


def by_client(payload: bytes) -> np.ndarray | str:
    try:
        return np.array(open_image(payload))
    except PictureError as error:
        return error.reason


@pytest.fixture(scope="module")
def worker():
    worker = DecodeWorker(memory_mb=512, timeout_s=20)
    yield worker
    worker.close()


@pytest.mark.parametrize("name", GOOD)
def test_every_reader_gives_the_same_pixels(worker, name):
    payload, expected, tolerance = GOOD[name]
    pixels = np.array(read_picture(payload))
    assert pixels.shape == (32, 32, 3)
    assert abs(pixels.astype(int) - np.asarray(expected)).mean() <= tolerance
    for read in (by_label_set(worker, payload), by_service(payload), by_client(payload)):
        np.testing.assert_array_equal(read, pixels)


@pytest.mark.parametrize("name", BAD)
def test_every_reader_gives_the_same_refusal(worker, name):
    payload, reason = BAD[name]
    with pytest.raises(PictureError) as caught:
        read_picture(payload)
    assert caught.value.reason == reason
    assert "\n" not in str(caught.value)
    assert by_label_set(worker, payload) == by_service(payload) == by_client(payload) == reason


def test_the_benchmark_reads_and_refuses_the_same(tmp_path):
    files = {f"good-{i}.png": payload for i, (payload, *_) in enumerate(GOOD.values())}
    files |= {f"bad-{i}.png": payload for i, (payload, _) in enumerate(BAD.values())}

    def add(rows):
        rows[:] = [{**rows[0], "input": f"data/{name}", "output": f"data/{name}"} for name in files]

    root = write_bench(tmp_path, add)
    for name, payload in files.items():
        (root / "data" / name).write_bytes(payload)
    data = read_benchmark(root)
    reasons = [reason for _, reason in BAD.values()]
    assert data.rejects == {reason: reasons.count(reason) for reason in set(reasons)}
    assert len(data.items) == len(GOOD)


def test_a_file_s_refusal_names_it(tmp_path: Path):
    with pytest.raises(PictureError, match=r"none\.png cannot be read: No such file"):
        read_picture(tmp_path / "none.png")
    (tmp_path / "page.jpg").write_bytes(b"<html>")
    with pytest.raises(PictureError, match=r"page\.jpg is no PNG, JPEG, WebP, AVIF"):
        read_picture(tmp_path / "page.jpg")


@pytest.mark.parametrize("length", [1, 20, 33, 45])
def test_cut_off_files_are_refused(length: int):
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF"):
        with pytest.raises(PictureError):
            read_picture(encoded(Image.fromarray(NOISE), kind)[:length])


def test_a_frame_survives_png_at_every_level():
    assert len({len(encode_png(COLOURS, level)) for level in (1, 9)}) == 2
    for level in (1, 6, 9):
        np.testing.assert_array_equal(read_picture(encode_png(NOISE, level)), NOISE)
    head, _, body = data_uri(encode_png(NOISE)).partition(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(body) == encode_png(Image.fromarray(NOISE))


def test_pictures_in_memory_are_shown_like_files():
    np.testing.assert_array_equal(to_rgb(half_clear()), ON_WHITE)
    np.testing.assert_array_equal(to_rgb(SIXTEEN), GREYS)
