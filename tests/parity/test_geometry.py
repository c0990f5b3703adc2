"""Pictures as the authors' code shows them to their models, rebuilt in our own words."""

import numpy as np
import pytest
import torch
from PIL import Image

from dynamics.core.images import encode_png, read_picture
from dynamics.data.video.pictures import read_pictures
from dynamics.evaluation.aurora_bench.metrics import l1
from dynamics.evaluation.aurora_bench.pictures import fitted, placed
from dynamics.models.image_tokenizers.frames import centre_crop, pad_to_square
from dynamics.models.image_tokenizers.vq import VqTokenizer
from dynamics.models.liquid import BACKGROUND

SIZES = [(480, 270), (424, 240), (128, 96), (97, 131), (64, 64)]
PX = 64


def scene(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Smooth colours with some noise, as in photographs."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray(
        (smooth + rng.integers(-9, 10, smooth.shape)).clip(0, 255).astype("uint8")
    )


@pytest.mark.parametrize("size", SIZES)
def test_chameleons_frame_is_resized_whole_and_then_cut(size: tuple[int, int]) -> None:
    picture = scene(size)
    scale = PX / min(size)
    whole = picture.resize(
        (round(size[0] * scale), round(size[1] * scale)), Image.Resampling.LANCZOS
    )
    left, top = (whole.width - PX) // 2, (whole.height - PX) // 2
    theirs = np.asarray(whole)[top : top + PX, left : left + PX]
    assert np.array_equal(centre_crop(picture, PX), theirs)


@pytest.mark.parametrize("size", SIZES)
def test_liquids_frame_is_squared_by_bars_and_then_resized(size: tuple[int, int]) -> None:
    picture = scene(size)
    square = Image.new("RGB", (max(size), max(size)), BACKGROUND)
    square.paste(picture, ((max(size) - size[0]) // 2, (max(size) - size[1]) // 2))
    theirs = np.asarray(square.resize((PX, PX), Image.Resampling.LANCZOS))
    assert np.array_equal(pad_to_square(picture, PX, BACKGROUND), theirs)


def test_a_strip_is_cut_before_it_is_resized() -> None:
    frame = centre_crop(scene((8000, 16)), 512)
    assert frame.shape == (512, 512, 3)


VALUES = np.linspace(-1.2, 1.2, 48, dtype=np.float32).reshape(3, 4, 4)


class Ramp:
    """A model whose pixels are given."""

    def to(self, dtype: torch.dtype) -> "Ramp":
        return self

    def pixels(self, codes_BL: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(VALUES)[None]


def test_pixels_are_cut_off_to_levels_not_rounded() -> None:
    images = VqTokenizer(
        Ramp(),
        frame_px=4,
        num_tokens=1,
        num_codes=2,
        bars=None,
        device="cpu",  # type: ignore[arg-type]
    )
    theirs = ((VALUES.clip(-1, 1) + 1) / 2 * 255).astype(np.uint8).transpose(1, 2, 0)
    assert np.array_equal(images.decode(np.zeros((1, 1), int))[0], theirs)


def test_alpha_is_white_for_chameleon_and_dropped_where_bars_square_the_picture() -> None:
    rgba = np.dstack([np.asarray(scene((64, 64))), np.full((64, 64), 128, np.uint8)])
    rgba[:8, :, 3] = 0
    png = encode_png(Image.fromarray(rgba))
    opacity = rgba[..., 3:] / 255
    whitened = (1 - opacity) * 255 + opacity * rgba[..., :3]
    assert abs(np.asarray(read_picture(png)) - whitened).max() <= 1
    assert np.array_equal(np.asarray(read_picture(png, drop_alpha=True)), rgba[..., :3])
    kept, dropped = (read_pictures(png, png, 64, bars).frames[0] for bars in (None, BACKGROUND))
    assert (kept[:8] == 255).all()
    assert abs(dropped.astype(int) - rgba[..., :3]).max() <= 1


@pytest.mark.parametrize("bars", [None, BACKGROUND])
@pytest.mark.parametrize("size", SIZES)
def test_a_frame_that_copies_comes_back_as_the_picture(
    size: tuple[int, int], bars: tuple[int, int, int] | None
) -> None:
    """The benchmark shows the frame of training; a copy of it costs no more than its scaling."""
    source, target = scene(size), scene(size, seed=1)
    px = max(size)
    frame = centre_crop(source, px) if bars is None else pad_to_square(source, px, bars)
    back = placed(frame, source, bars)
    assert back.size == source.size
    assert l1(np.asarray(back), np.asarray(source)) < 0.02
    copy = l1(np.asarray(fitted(source, target.size)), np.asarray(target))
    assert abs(l1(np.asarray(back), np.asarray(target)) - copy) < 0.01


def test_of_a_cropped_picture_the_rest_stays_as_it_was() -> None:
    source = scene((128, 64))
    black = np.zeros((PX, PX, 3), np.uint8)
    shown = np.asarray(placed(black, source, None))
    assert not shown[:, 32:96].any()
    assert np.array_equal(np.delete(shown, np.s_[32:96], 1), np.delete(source, np.s_[32:96], 1))
    assert read_picture(encode_png(placed(black, source, None))).size == (128, 64)
