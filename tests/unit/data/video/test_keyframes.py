from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamics.data.video import keyframes
from dynamics.data.video.keyframes import (
    change,
    colour_histograms,
    find_cuts,
    frame_motion,
    histogram_distance,
    pick_frames,
    select_pairs,
)

SETTINGS = {"top_k": 6, "spacing_frames": 3, "min_change": 0.004, "max_cut": 0.5}


def textured(seed: int, num: int, shift: int, size: int = 32) -> np.ndarray:
    """Frames of one scene under a camera that pans ``shift`` pixels a frame."""
    rng = np.random.default_rng(seed)
    low, high = np.sort(rng.integers(0, 256, (2, 3)), axis=0)
    world = rng.integers(low, high + 1, (size, 8 * size, 3)).astype(np.uint8)
    return np.stack([np.roll(world, -shift * t, axis=1)[:, :size] for t in range(num)])


@pytest.mark.parametrize("hold", [2, 3, 7])
def test_every_frame_after_a_jump_is_picked_and_nothing_else(film, hold):
    thumbs = film(1, num_actions=6, hold=hold, size=32)
    motion, _ = frame_motion(thumbs)
    assert pick_frames(motion, top_k=6, spacing_frames=hold) == [hold * k for k in range(1, 7)]


def test_one_more_pick_than_jumps_adds_the_first_state(film):
    motion, _ = frame_motion(film(1, num_actions=6, hold=3, size=32))
    assert pick_frames(motion, top_k=7, spacing_frames=3) == [3 * k for k in range(7)]


@given(
    st.lists(st.floats(0, 1), max_size=80),
    st.integers(1, 8),
    st.integers(1, 25),
)
def test_picks_are_few_ascending_and_apart(motion, top_k, spacing):
    picks = pick_frames(np.array(motion), top_k=top_k, spacing_frames=spacing)
    assert len(picks) <= top_k
    assert all(later - earlier >= spacing for earlier, later in pairwise(picks))
    assert bool(picks) == bool(motion)


def test_ties_go_to_the_earlier_frame():
    assert pick_frames(np.ones(10), top_k=2, spacing_frames=3) == [0, 3]


def test_grey_change_is_measured_in_parts_of_white():
    black, white = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)
    assert change(black, white) == 1.0
    assert change(white, black) == 1.0
    assert change(white, white) == 0.0


def test_painting_red_to_equally_bright_blue_is_a_change():
    red, blue = np.full((32, 32, 3), 80, np.uint8), np.full((32, 32, 3), 80, np.uint8)
    red[8:14, 8:14], blue[8:14, 8:14] = (230, 40, 35), (36, 97, 250)
    luma = np.array([0.299, 0.587, 0.114])
    assert abs((red @ luma).mean() - (blue @ luma).mean()) / 255 < 0.001
    assert change(red, blue) > 0.01


def test_histograms_sum_to_one(film):
    np.testing.assert_allclose(colour_histograms(film(2, size=32)).sum(-1), 1.0)


def test_histogram_distance_is_zero_for_equal_and_one_for_disjoint():
    black, white = np.zeros((1, 8, 8, 3), np.uint8), np.full((1, 8, 8, 3), 255, np.uint8)
    histograms = colour_histograms(np.concatenate([black, black, white]))
    assert histogram_distance(histograms[0], histograms[1]) == 0.0
    assert histogram_distance(histograms[0], histograms[2]) == 1.0


def test_drifting_light_is_no_cut():
    scene = textured(3, 1, 0)[0].astype(np.float64)
    thumbs = np.stack([np.clip(scene * gain, 0, 255) for gain in np.linspace(1, 1.1, 40)])
    _, distance = frame_motion(thumbs.astype(np.uint8))
    assert not find_cuts(distance, 0.5).any()


def test_jumping_objects_are_no_cut(film):
    for seed in range(20):
        _, distance = frame_motion(film(seed, size=32))
        assert not find_cuts(distance, 0.5).any()


def test_pairs_across_a_cut_are_rejected_and_the_cut_itself_is_not_picked():
    thumbs = np.concatenate([textured(0, 30, 1), textured(9, 30, 1)])
    pairs = select_pairs(thumbs, **{**SETTINGS, "spacing_frames": 8})
    spanning = [pair for pair in pairs if pair.source < 30 <= pair.target]
    assert [pair.verdict for pair in spanning] == ["shot_cut"]
    assert {pair.verdict for pair in pairs if pair not in spanning} == {"accepted"}
    assert 30 not in {index for pair in pairs for index in (pair.source, pair.target)}


def test_cut_between_alike_scenes_is_a_spike_but_a_fast_pan_is_not():
    quiet = np.full(40, 0.02)
    cut = quiet.copy()
    cut[20] = 0.2
    pan = quiet.copy()
    pan[15:25] = 0.2
    assert np.flatnonzero(find_cuts(cut, 0.5)).tolist() == [20]
    assert not find_cuts(pan, 0.5).any()


def test_slow_fade_is_rejected_by_its_ends():
    first, last = textured(0, 1, 0)[0].astype(float), textured(9, 1, 0)[0].astype(float)
    thumbs = np.stack([first + (last - first) * t for t in np.linspace(0, 1, 60)]).astype(np.uint8)
    pairs = select_pairs(thumbs, top_k=2, spacing_frames=50, min_change=0.004, max_cut=0.5)
    assert [pair.verdict for pair in pairs] == ["shot_cut"]


def test_still_clip_gives_only_near_copies():
    pairs = select_pairs(np.full((30, 32, 32, 3), 90, np.uint8), **SETTINGS)
    assert len(pairs) == 5
    assert {pair.verdict for pair in pairs} == {"near_copy"}


def test_clip_shorter_than_the_spacing_gives_no_pair(film):
    assert (
        select_pairs(film(0, num_actions=1, hold=3, size=32), **{**SETTINGS, "spacing_frames": 9})
        == []
    )


def test_chunks_do_not_change_the_motion(monkeypatch):
    thumbs = textured(5, 50, 2)
    whole = frame_motion(thumbs)
    monkeypatch.setattr(keyframes, "_CHUNK", 7)
    np.testing.assert_array_equal(frame_motion(thumbs), whole)
