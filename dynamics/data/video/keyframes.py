"""Choice of the frames of a clip that become pairs: motion peaks, no shot cuts or near-copies.

The paper (arXiv 2506.06006, section 3.2) takes per clip the K_f = 6 frames with the most motion, at
least I_f = 20 frames apart, and pairs consecutive picks. It measures motion by optical flow of an
unnamed kind; here it is the mean change of a small thumbnail, which needs no model and peaks at the
same frames. Cut and near-copy rejection are ours: edited video peaks at its cuts.

T frames, P picks, all on thumbnails [T, H, W, 3] uint8.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

Verdict = Literal["accepted", "near_copy", "shot_cut", "damaged"]

BINS = 8
"""Histogram bins per colour channel."""
SPIKE_FLOOR, SPIKE_RATIO, SPIKE_WINDOW = 0.2, 4.0, 5
"""A cut between alike scenes: at least this share of ``max_cut``, and this many times the median of
the frames within the window. The five cuts of the clip bikes.mp4 measure 0.13 to 0.82 and 5 to 56
times their surroundings, its fastest pan 0.09 and twice, jumps on a 4x4 tabletop at most 0.04."""
_CHUNK = 512
"""Frames compared at a time: bounds the memory for hour-long clips."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two consecutive picks, by frame index: ``source < target``."""

    source: int
    target: int
    motion: float
    """Mean absolute change between the two, 0..1."""
    verdict: Verdict


def change(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Mean absolute difference over pixels and colours, 0..1, of frames [..., H, W, 3] uint8.

    Over the colour channels rather than luma: an object painted from red to blue hardly changes
    its luma. A grey-level change gives the same value either way.
    """
    # The wider minus the narrower: uint8 without overflow, a quarter of the memory of floats.
    difference = np.maximum(source, target) - np.minimum(source, target)
    return np.asarray(difference.mean(axis=(-3, -2, -1), dtype=np.float64) / 255.0)


def colour_histograms(thumbs_THW3: np.ndarray) -> np.ndarray:
    """Histograms of red, green and blue side by side, float64 [T, 3 * BINS]; each row sums to 1.

    A value counts for the two nearest bin centres by its distance to them. With hard bins, light
    that flickers by one grey level can carry a whole even background across a bin's border, which
    looks like a cut.
    """
    num = len(thumbs_THW3)
    values_TN3 = thumbs_THW3.reshape(num, -1, 3).astype(np.int64)
    places = values_TN3 + 256 * np.arange(3) + 768 * np.arange(num)[:, None, None]
    counts = np.bincount(places.ravel(), minlength=num * 768).reshape(num, 3, 256)
    position = np.arange(256)[:, None] / 255 * (BINS - 1)
    weights_VB = np.maximum(0.0, 1.0 - np.abs(position - np.arange(BINS)))
    return np.asarray((counts @ weights_VB).reshape(num, -1) / (3 * values_TN3.shape[1]))


def histogram_distance(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Total variation distance of histograms [..., N]: 0 equal, 1 nothing in common."""
    return np.asarray(np.abs(source - target).sum(-1) / 2)


def frame_motion(thumbs_THW3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Change and histogram distance of each frame from the one before; both [T], first 0."""
    motion_T = np.zeros(len(thumbs_THW3))
    distance_T = np.zeros(len(thumbs_THW3))
    for begin, chunk in _overlapping(thumbs_THW3):
        span = slice(begin + 1, begin + len(chunk))
        histograms = colour_histograms(chunk)
        motion_T[span] = change(chunk[:-1], chunk[1:])
        distance_T[span] = histogram_distance(histograms[:-1], histograms[1:])
    return motion_T, distance_T


def _overlapping(thumbs_THW3: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Chunks of frames, each beginning with the last frame of the one before."""
    for begin in range(0, len(thumbs_THW3) - 1, _CHUNK):
        yield begin, thumbs_THW3[begin : begin + _CHUNK + 1]


def find_cuts(distance_T: np.ndarray, max_cut: float) -> np.ndarray:
    """Bool [T]: the first frame of each new shot, from distances to the frame before (0..1).

    Either the distance is above ``max_cut``, or it is a lone spike (see `SPIKE_FLOOR`). Objects
    that jump, as on the tabletop, hardly change the histogram and are no spikes.
    """
    padded = np.pad(distance_T, SPIKE_WINDOW, mode="edge")
    around_TW = np.lib.stride_tricks.sliding_window_view(padded, 2 * SPIKE_WINDOW + 1)
    lone_T = distance_T > SPIKE_RATIO * np.median(around_TW, axis=-1)
    spike_T = lone_T & (distance_T > SPIKE_FLOOR * max_cut)
    return np.asarray(spike_T | (distance_T > max_cut))


def pick_frames(motion_T: np.ndarray, *, top_k: int, spacing_frames: int) -> list[int]:
    """Indices, ascending, of at most ``top_k`` frames, most motion first, none closer than spacing.

    Ties go to the earlier frame. The paper's K_f and I_f are 6 and 20.
    """
    picks: list[int] = []
    free_T = np.ones(len(motion_T), dtype=bool)
    for index in np.argsort(-motion_T, kind="stable").tolist():
        if free_T[index]:
            picks.append(index)
            free_T[max(0, index - spacing_frames + 1) : index + spacing_frames] = False
            if len(picks) == top_k:
                break
    return sorted(picks)


def select_pairs(
    thumbs_THW3: np.ndarray,
    *,
    top_k: int,
    spacing_frames: int,
    min_change: float,
    max_cut: float,
    gaps: Sequence[int] = (),
) -> list[Pair]:
    """Pair consecutive picks, each pair with a verdict.

    A cut's own frame counts as motionless, since what changed there is the camera's subject. A pair
    spans a cut when one lies between its frames, or when their histograms are too far apart (fades
    have no single frame of change). ``gaps`` are the first frames after damaged ones; a pair that
    spans such a gap is rejected, too.
    """
    motion_T, distance_T = frame_motion(thumbs_THW3)
    gap_T = np.zeros(len(motion_T), dtype=bool)
    gap_T[list(gaps)] = True
    cut_T = find_cuts(distance_T, max_cut)
    motion_T[cut_T | gap_T] = 0.0
    picks = pick_frames(motion_T, top_k=top_k, spacing_frames=spacing_frames)
    if len(picks) < 2:
        return []
    picked = thumbs_THW3[picks]
    changes = change(picked[:-1], picked[1:])
    histograms = colour_histograms(picked)
    jumps = histogram_distance(histograms[:-1], histograms[1:])
    pairs = []
    for number, (source, target) in enumerate(pairwise(picks)):
        verdict: Verdict = "accepted"
        if gap_T[source + 1 : target + 1].any():
            verdict = "damaged"
        elif jumps[number] > max_cut or cut_T[source + 1 : target + 1].any():
            verdict = "shot_cut"
        elif changes[number] < min_change:
            verdict = "near_copy"
        motion = float(changes[number])
        pairs.append(Pair(source=source, target=target, motion=motion, verdict=verdict))
    return pairs
