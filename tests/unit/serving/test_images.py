import base64
import io

import numpy as np
import pytest
from PIL import Image

from dynamics.core.errors import UserError
from dynamics.serving.images import TooLargeError, encode_png, from_base64, open_picture
from tests.serving import png


def encoded(form: str, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (20, 10), 0).save(buffer, format=form)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_common_formats_are_read(form: str) -> None:
    assert open_picture(encoded(form)).size == (20, 10)


@pytest.mark.parametrize("form", ["GIF", "BMP", "TIFF", "PPM", "ICO"])
def test_other_formats_are_not(form: str) -> None:
    with pytest.raises(UserError, match="PNG, JPEG or WebP"):
        open_picture(encoded(form))


def test_too_many_pixels_are_refused_before_they_are_decoded() -> None:
    bomb = from_base64(png((12_000, 12_000), "1"))  # 18 KB that would become 432 MB
    assert len(bomb) < 2**16
    with pytest.raises(TooLargeError, match="pixels"):
        open_picture(bomb)
    assert open_picture(from_base64(png((4000, 4000), "1"))).size == (4000, 4000)


def test_too_many_bytes_are_refused() -> None:
    with pytest.raises(TooLargeError, match="bytes"):
        from_base64(base64.b64encode(bytes(4 * 2**20 + 1)).decode())


@pytest.mark.parametrize("length", [0, 1, 20, 33, 45])
def test_damaged_files_are_a_users_error(length: int) -> None:
    for form in ("PNG", "JPEG", "WEBP"):
        with pytest.raises(UserError, match="image"):
            open_picture(encoded(form)[:length])


def test_a_frame_survives_the_journey() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert np.array_equal(np.array(open_picture(from_base64(encode_png(frame)))), frame)
