import asyncio
import base64
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dynamics.core.images import PictureError, read_picture
from dynamics.serving.images import from_base64, to_base64, to_frame
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


def test_large_pictures_are_decoded_one_at_a_time() -> None:
    images = SimpleNamespace(fit=lambda picture: np.asarray(picture.resize((32, 32))), bars=None)
    large, small = png((4000, 4000), colour=(9, 9, 9)), png((40, 40), colour=(9, 9, 9))
    transparent = png((4000, 4000), "LA", (9, 255))

    async def main() -> tuple[float, float]:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak
        before = resident_mb("VmRSS")
        texts = [large, transparent] * 3 + [small] * 2
        frames = await asyncio.gather(*[to_frame(text, images) for text in texts])
        assert all(np.array_equal(frame, np.full((32, 32, 3), 9)) for frame in frames)
        return before, resident_mb("VmHWM")

    before, peak = asyncio.run(main())
    assert peak < before + 200
