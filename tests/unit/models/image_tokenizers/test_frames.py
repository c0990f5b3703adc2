import numpy as np
import pytest
from PIL import Image

from dynamics.models.image_tokenizers.frames import centre_crop, pad_to_square

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
GREY = (122, 116, 104)


def striped(width: int, height: int) -> Image.Image:
    """Thirds red, green, blue along the longer side."""
    picture = Image.new("RGB", (width, height))
    for third, colour in enumerate((RED, GREEN, BLUE)):
        if width >= height:
            picture.paste(colour, (third * width // 3, 0, (third + 1) * width // 3, height))
        else:
            picture.paste(colour, (0, third * height // 3, width, (third + 1) * height // 3))
    return picture


@pytest.mark.parametrize("size", [(300, 100), (100, 300)])
def test_the_crop_keeps_the_middle(size: tuple[int, int]) -> None:
    frame = centre_crop(striped(*size), 20)
    assert frame.shape == (20, 20, 3)
    assert np.allclose(frame[4:-4, 4:-4], GREEN, atol=3)


def test_padding_keeps_everything_between_bars() -> None:
    frame = pad_to_square(striped(300, 100), 60, GREY)
    assert frame.shape == (60, 60, 3)
    assert (frame[:15] == GREY).all()
    assert (frame[-15:] == GREY).all()
    for x, colour in ((10, RED), (30, GREEN), (50, BLUE)):
        assert tuple(frame[30, x]) == colour


def test_a_square_frame_of_the_right_size_is_unchanged() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, size=(32, 32, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    assert (centre_crop(picture, 32) == pixels).all()
    assert (pad_to_square(picture, 32, GREY) == pixels).all()
