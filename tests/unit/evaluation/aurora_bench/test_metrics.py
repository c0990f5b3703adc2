"""Picture metrics on known answers."""

import json

import numpy as np
import pytest
from PIL import Image

from dynamics.core.images import read_picture
from dynamics.evaluation.aurora_bench.dataset import read_benchmark
from dynamics.evaluation.aurora_bench.metrics import (
    MASK_PX,
    change_mask,
    l1,
    mask_iou,
    nearer_target,
    ssim,
)
from dynamics.evaluation.aurora_bench.pictures import fitted


def noise(seed: int, shape=(40, 48, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_the_copys_l1_is_the_published_one_to_four_decimals(real_bench):
    wanted = json.loads((real_bench / "copy_l1.json").read_text())
    found: dict[str, list[float]] = {subset: [] for subset in wanted}
    for item in read_benchmark(real_bench).items:
        target = read_picture(item.target)
        copy = fitted(read_picture(item.source), target.size)
        found[item.subset].append(l1(np.asarray(copy), np.asarray(target)))
    for subset, values in found.items():
        assert len(values) == wanted[subset]["pairs"]
        assert round(float(np.mean(values)), 4) == wanted[subset]["copy_l1"], subset


def test_l1_is_the_mean_difference_over_255():
    black, grey = np.zeros((3, 5, 3), np.uint8), np.full((3, 5, 3), 51, np.uint8)
    assert l1(black, black) == 0
    assert l1(grey, black) == pytest.approx(0.2)
    assert l1(black, grey) == pytest.approx(0.2)


def test_ssim_of_equal_pictures_is_one():
    assert ssim(noise(0), noise(0)) == pytest.approx(1, abs=1e-5)


def test_ssim_follows_its_formula_window_by_window():
    a, b = noise(0, (14, 13, 3)), noise(1, (14, 13, 3))
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for channel in range(3):
        for y in range(4):
            for x in range(3):
                p, q = (m[y : y + 11, x : x + 11, channel].astype(np.float64) for m in (a, b))
                mp, mq = (window * p).sum(), (window * q).sum()
                vp, vq = (window * p * p).sum() - mp**2, (window * q * q).sum() - mq**2
                cov = (window * p * q).sum() - mp * mq
                c1, c2 = 2.55**2, 7.65**2
                top, bottom = (2 * mp * mq + c1) * (2 * cov + c2), (mp**2 + mq**2 + c1)
                values.append(top / (bottom * (vp + vq + c2)))
    assert ssim(a, b) == pytest.approx(np.mean(values), abs=1e-5)


def test_ssim_refuses_pictures_below_its_window():
    with pytest.raises(ValueError, match="11 pixels"):
        ssim(noise(0, (10, 40, 3)), noise(1, (10, 40, 3)))


def square(at: int, side: int = 128) -> Image.Image:
    picture = Image.new("RGB", (side, side))
    picture.paste("white", (at, at, at + side // 4, at + side // 4))
    return picture


def test_a_copy_has_no_change_in_common_with_the_truth():
    source, target = square(0), square(64)
    true = change_mask(source, target)
    assert true.shape == (MASK_PX, MASK_PX)
    assert true.sum() == 2 * 16 * 16
    assert mask_iou(change_mask(source, source), true) == 0


def test_the_right_change_overlaps_wholly_and_half_of_it_by_half():
    source, target = square(0), square(64)
    true = change_mask(source, target)
    assert mask_iou(true, true) == 1
    only_removed = change_mask(source, Image.new("RGB", (128, 128)))
    assert mask_iou(only_removed, true) == 0.5


def test_a_faint_change_is_none():
    dark, less_dark = (Image.new("RGB", (64, 64), (grey,) * 3) for grey in (0, 25))
    assert not change_mask(dark, less_dark).any()
    assert change_mask(dark, Image.new("RGB", (64, 64), (26,) * 3)).all()


def test_where_nothing_changes_there_is_no_overlap_to_measure():
    same = change_mask(square(0), square(0))
    assert mask_iou(change_mask(square(0), square(64)), same) is None


def test_a_copy_is_never_nearer_the_target():
    source, target = np.zeros((4, 2), np.float32), np.ones((4, 2), np.float32)
    assert not nearer_target(source, source, target)
    assert not nearer_target(source, source, source)
    assert nearer_target(target, source, target)
    assert not nearer_target((source + target) / 2, source, target)
