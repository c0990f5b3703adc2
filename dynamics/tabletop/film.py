"""Films episodes of the tabletop, with their ground truth."""

import math
from itertools import pairwise

import numpy as np

from dynamics.core.config import KeyframeConfig, WorldConfig
from dynamics.core.domain import Split
from dynamics.core.places import Place
from dynamics.core.progress import Progress, silent
from dynamics.core.seeds import numpy_rng
from dynamics.data.video.filmed import Filmed, write_clips
from dynamics.tabletop.language import say
from dynamics.tabletop.render import (
    carry_offsets,
    disturb,
    expose,
    light,
    render_cells,
    sample_lighting,
    sample_offsets,
)
from dynamics.tabletop.scene import Scene, apply, sample_action, sample_scene, transition_key

# Name of a split in the seeds of its clips: another name would film other scenes.
_STREAMS = {"labelled": "seed"}


def actions_per_clip(world: WorldConfig, split: Split) -> int:
    """Held-out clips give one pair each, so that held-out pairs are independent scenes."""
    return 1 if split == "heldout" else world.actions_per_clip


def filmed_keyframes(world: WorldConfig, split: Split) -> KeyframeConfig:
    """Key-frame settings that pick one frame of every state of a filmed clip."""
    num_states = actions_per_clip(world, split) + 1
    return KeyframeConfig(top_k=num_states, spacing_frames=world.hold_frames)


def sample_episode(
    world: WorldConfig, num_actions: int, rng: np.random.Generator
) -> tuple[list[Scene], list[str]]:
    """States and sentences of an episode, after a few actions that are not filmed.

    Every split thus shows the same mix of fresh and played-with tables.
    """
    states = [sample_scene(rng, world.grid, world.min_objects, world.max_objects)]
    sentences: list[str] = []
    unseen = int(rng.integers(0, 4))
    for _ in range(unseen + num_actions):
        action = sample_action(rng, states[-1], min_objects=max(1, world.min_objects - 1))
        target = apply(states[-1], action)
        assert target is not None  # sample_action only offers possible actions
        states.append(target)
        sentences.append(say(action, rng))
    return states[unseen:], sentences[unseen:]


def film_frames(states: list[Scene], world: WorldConfig, rng: np.random.Generator) -> np.ndarray:
    """Video frames of a state sequence, uint8 [T, H, W, 3], H = W = ``film_scale * frame_px``."""
    offsets = [sample_offsets(rng, world.grid)]
    for source, target in pairwise(states):
        offsets.append(carry_offsets(source, target, offsets[-1]))
    cells = np.array([state.cells for state in states])
    still = render_cells(cells, np.stack(offsets), world.cell_px * world.film_scale)
    lit = np.repeat(light(still, sample_lighting(rng)), world.hold_frames, axis=0)
    return expose(disturb(lit, world, rng), rng)


def film_split(
    split: Split,
    world: WorldConfig,
    num_pairs: int,
    seed: int,
    out: Place,
    progress: Progress = silent,
    *,
    seen: frozenset[int] = frozenset(),
) -> None:
    """Film clips for ``num_pairs`` pairs into ``out/clips``; ``out/clips.parquet`` comes last.

    A finished split is left as it is. Clips depend on (seed, split, clip number) and on ``seen``:
    every `transition_key` of the base's pretraining, which no clip shows again.
    """
    num_actions = actions_per_clip(world, split)

    def film(index: int) -> Filmed:
        rng = numpy_rng(seed, "film", _STREAMS.get(split, split), index)
        states, sentences = sample_episode(world, num_actions, rng)
        while any(transition_key(*pair) in seen for pair in pairwise(states)):
            states, sentences = sample_episode(world, num_actions, rng)
        frames = film_frames(states, world, rng)
        return Filmed(frames, [state.to_text() for state in states], sentences)

    write_clips(out, math.ceil(num_pairs / num_actions), film, world.fps, progress, split)
