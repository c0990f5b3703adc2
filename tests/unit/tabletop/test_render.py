import hashlib

import numpy as np

from dynamics.core.config import WorldConfig
from dynamics.tabletop.oracle import read_scenes
from dynamics.tabletop.render import carry_offsets, disturb, sample_offsets, snapshot
from dynamics.tabletop.scene import Kind, Move, Paint, Scene, apply, sample_scene

WORLD = WorldConfig(film_scale=3)


def photographs(num: int, seed: int = 0) -> tuple[list[Scene], np.ndarray]:
    rng = np.random.default_rng(seed)
    scenes = [sample_scene(rng, 4, 3, 4) for _ in range(num)]
    return scenes, snapshot(scenes, WORLD, rng)


def test_the_oracle_reads_at_least_995_of_1000_raw_frames() -> None:
    scenes, frames = photographs(1000)
    right = sum(a == b for a, b in zip(scenes, read_scenes(frames, WORLD), strict=True))
    assert right >= 995


def test_frames_have_the_models_size() -> None:
    _, frames = photographs(2)
    assert frames.shape == (2, 32, 32, 3)
    assert frames.dtype == np.uint8


def test_equal_seeds_give_equal_pixels() -> None:
    assert (photographs(3)[1] == photographs(3)[1]).all()
    assert (photographs(3)[1] != photographs(3, seed=1)[1]).any()


def test_golden_frames_of_a_fixed_table() -> None:
    """Rounded to 16 levels, so that the last bit of another machine's floats does not matter."""
    scene = Scene(4, (1, 0, 5, 0, 0, 9, 0, 0, 0, 0, 12, 0, 0, 0, 0, 3))
    frame = snapshot([scene], WORLD, np.random.default_rng(7))[0]
    digest = hashlib.sha256((frame // 16).tobytes()).hexdigest()
    assert digest == "d49d662494ef61a2c8d19838bab6572001314bda9a2db24ccdf3115c2c2ddede"


def test_objects_keep_their_offset_when_they_move_or_change_colour() -> None:
    ring = Kind("red", "ring")
    scene = Scene(4, (ring.index, *[0] * 15))
    offsets = sample_offsets(np.random.default_rng(0), 4)
    moved = apply(scene, Move(ring, "right"))
    painted = apply(scene, Paint(ring, "blue"))
    assert moved is not None
    assert painted is not None
    assert (carry_offsets(scene, moved, offsets)[1] == offsets[0]).all()
    assert (carry_offsets(scene, painted, offsets)[0] == offsets[0]).all()


def test_jitter_and_distractors_change_pixels_but_not_most_readings() -> None:
    busy = WORLD.model_copy(update={"distractors": 2, "camera_jitter_px": 0.3})
    frames = np.full((4, 96, 96, 3), 0.3, dtype=np.float32)
    assert (disturb(frames, WORLD, np.random.default_rng(0)) == frames).all()
    assert (disturb(frames, busy, np.random.default_rng(0)) != frames).any()
