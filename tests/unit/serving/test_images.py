import asyncio
import base64
import io
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dynamics.core.images import FORMATS, PictureError, read_picture
from dynamics.serving.images import MAX_HEAVY_PIXELS, from_base64, to_base64, to_frame
from tests.serving import png


def test_too_many_bytes_are_refused() -> None:
    with pytest.raises(PictureError, match="more than 4,194,304 bytes") as caught:
        from_base64(base64.b64encode(bytes(4 * 2**20 + 1)).decode())
    assert caught.value.reason == "too_large"


def test_what_is_no_base64_is_refused() -> None:
    with pytest.raises(PictureError, match="no base64 of a PNG"):
        from_base64("no picture")


def test_line_ends_missing_padding_and_data_urls_are_read() -> None:
    text = base64.encodebytes(bytes(100)).decode()
    for written in (text, text.replace("\n", "\r\n"), text.rstrip("=\n")):
        assert from_base64(written) == bytes(100)
        assert from_base64(f"data:image/png;base64,{written}") == bytes(100)
        assert from_base64(f"DATA:image/png;charset=x;BASE64,{written}") == bytes(100)


def test_base64_as_it_stands_in_urls_is_read() -> None:
    content = bytes(range(248, 256)) * 2
    assert "+" in base64.b64encode(content).decode()
    assert from_base64(base64.urlsafe_b64encode(content).decode()) == content
    quoted = base64.b64encode(content).decode().replace("+", "%2B").replace("=", "%3D")
    assert from_base64(f"data:image/png;base64,{quoted.replace('/', '%2F')}") == content


def test_a_frame_survives_the_journey() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert np.array_equal(np.array(read_picture(from_base64(to_base64(frame)))), frame)


def resident_mb(field: str) -> float:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def encoded(kind: str, pixels: int) -> str:
    """A picture in base64, half transparent where the format can be."""
    buffer = io.BytesIO()
    mode = "LA" if kind in ("PNG", "WEBP", "AVIF") else "L"
    size = (4000, pixels // 4000)
    Image.new(mode, size, (9, 128)[: len(mode)]).save(
        buffer, kind, speed=10, method=0, compression="tiff_lzw"
    )
    return base64.b64encode(buffer.getvalue()).decode()


# Every kind in the service's memory at once, as long as it takes.
@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted({*FORMATS} - {"BMP", "PPM"}))  # those are too many bytes
def test_two_dozen_large_pictures_at_once_take_less_than_200_mb(kind: str) -> None:
    images = SimpleNamespace(fit=lambda picture: np.asarray(picture.resize((32, 32))), bars=None)
    text = encoded(kind, MAX_HEAVY_PIXELS if kind in ("WEBP", "AVIF") else 16_000_000)
    assert growth_mb(images, [text] * 24) < 200


def test_large_pictures_are_decoded_one_at_a_time() -> None:
    images = SimpleNamespace(fit=lambda picture: np.asarray(picture.resize((32, 32))), bars=None)
    texts = [png((4000, 4000)), encoded("PNG", 16_000_000)] * 3 + [png((40, 40))] * 2
    assert growth_mb(images, texts) < 200


@pytest.mark.parametrize("kind", ["WEBP", "AVIF"])
def test_pictures_whose_decoders_take_most_memory_may_be_less_large(kind: str) -> None:
    images = SimpleNamespace(fit=np.asarray, bars=None)
    with pytest.raises(PictureError, match="10,000,000 pixels, not 10,004,000; send it") as caught:
        asyncio.run(to_frame(encoded(kind, MAX_HEAVY_PIXELS + 4000), images))
    assert caught.value.reason == "too_large"


def growth_mb(images: Any, texts: list[str]) -> float:
    """Most memory that the process needs more while it decodes all of them."""

    async def main() -> float:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak
        before = resident_mb("VmRSS")
        await asyncio.gather(*[to_frame(text, images) for text in texts])
        return resident_mb("VmHWM") - before

    return asyncio.run(main())
