import numpy as np
import pytest

from dynamics.models.image_tokenizers.fsq import FsqConfig
from dynamics.pretraining.image_tokenizer import (
    change_likeness,
    choose_image_tokenizer,
    fit_image_tokenizer,
    shrunk,
    sight,
    square_change,
)

LEVELS = (5, 5, 5)


def pairs(num: int, px: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A square of an eighth of the side that has jumped, on a ground with the camera's noise."""
    rng = np.random.default_rng(seed)
    side, ends = px // 8, []
    for _ in range(2):
        frames = rng.integers(98, 103, (num, px, px, 3)).astype(np.uint8)
        for frame, (top, left) in zip(frames, rng.integers(8, size=(num, 2)) * side, strict=True):
            frame[top : top + side, left : left + side] = (220, 40, 40)
        ends.append(frames)
    return ends[0], ends[1]


def test_squares_that_only_differ_by_noise_are_told_from_changed_ones() -> None:
    first, second = pairs(20, 64, 0)
    change = square_change(first, second, 8)
    assert change.shape == (20, 64)
    assert set(np.unique((change > 3).sum(1))) <= {0, 2}
    assert change.max() > 50


def test_likeness_is_one_for_the_same_change_and_zero_for_none() -> None:
    first, second = pairs(4, 32, 0)
    assert change_likeness((first, second), (first, second)) == pytest.approx([1] * 4)
    assert change_likeness((first, second), (first, first)) == pytest.approx([0] * 4)


def test_a_fitted_tokenizer_sees_a_change_and_keeps_what_is_still() -> None:
    first, second = pairs(200, 64, 0)
    config = FsqConfig(frame_px=64, width=16, levels=LEVELS)
    images = fit_image_tokenizer(first, second, config, steps=80, seed=0)
    found = sight(images, *pairs(50, 64, 1))
    assert found.is_clear
    assert found.seen > 0.95
    assert found.kept > 0.9


@pytest.mark.parametrize("seed", range(3))
def test_a_pale_thing_on_a_white_ground_is_seen(seed: int) -> None:
    rng = np.random.default_rng(0)
    first, second = np.full((2, 200, 64, 64, 3), 255, np.uint8)
    for frames in (first, second):
        for frame, (top, left) in zip(frames, rng.integers(58, size=(200, 2)), strict=True):
            frame[top : top + 6, left : left + 6] = (170, 185, 200)
    images = fit_image_tokenizer(first, second, FsqConfig(frame_px=64), steps=60, seed=seed)
    assert sight(images, first[:50], second[:50]).seen > 0.9


def test_the_first_size_that_sees_clearly_is_taken_and_each_trial_is_told() -> None:
    said: list[str] = []
    config, tried = choose_image_tokenizer(
        *pairs(40, 32, 0), (2, 3), LEVELS, steps=15, seed=0,
        progress=lambda done, total, what, *_: said.append(what),
    )  # fmt: skip
    clear = [side for side, found in tried.items() if found.is_clear]
    assert config.frame_px == 8 * (clear or [max(tried, key=lambda s: tried[s].likeness)])[0]
    assert list(tried) == [2, 3][: len(tried)]
    assert said == [f"try {side} x {side} codes a frame" for side in tried]


def test_frames_shrink_by_areas() -> None:
    frames = np.zeros((1, 192, 192, 3), np.uint8)
    frames[:, :24] = 255
    assert (shrunk(frames, 64)[0, :8] == 255).all()
    assert not shrunk(frames, 64)[0, 8:].any()
