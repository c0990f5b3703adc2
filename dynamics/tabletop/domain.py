"""The tabletop as a domain: a grammar for sentences, rules for actions, an oracle for frames."""

import math
from functools import lru_cache

import numpy as np
import pyarrow as pa

from dynamics.core.config import KeyframeConfig, LoopConfig
from dynamics.core.domain import ExampleScene, Split
from dynamics.core.places import Place
from dynamics.core.progress import Progress
from dynamics.data.video.filmed import truth_table
from dynamics.tabletop.example_scenes import example_scenes
from dynamics.tabletop.film import actions_per_clip, film_split, filmed_keyframes
from dynamics.tabletop.language import parse
from dynamics.tabletop.oracle import read_scenes
from dynamics.tabletop.render import render_cells
from dynamics.tabletop.scene import Scene, action_type, apply
from dynamics.tabletop.seen import seen_transitions

_MAX_DIFFERENCE = 20.0
"""Mean absolute difference, of 255, between a frame and a drawing of the scene read from it: at
most 7 on frames of the tabletop, 47 and more on noise and plain colours."""


class Tabletop:
    """`dynamics.core.domain.Domain` and its `Simulator`."""

    def __init__(self, cfg: LoopConfig) -> None:
        self._cfg = cfg
        self._world = cfg.world

    @property
    def simulator(self) -> "Tabletop":
        """The tabletop films its own episodes."""
        return self

    def meaning(self, sentence: str) -> str:
        """The action that the sentence names; "" outside the grammar."""
        action = parse(sentence)
        return "" if action is None else repr(action)

    def kind(self, sentence: str) -> str:
        """The action's type, e.g. ``move``; "" outside the grammar."""
        action = parse(sentence)
        return "" if action is None else action_type(action)

    def outcome(self, sentence: str, state: str) -> str | None:
        """The state that the rules give; None when an object that is named is not there."""
        return _outcome(sentence, state)

    def states(self, frames_BHW3: np.ndarray) -> list[str | None]:
        """States that the oracle reads; None for frames of another size than the tabletop's."""
        if frames_BHW3.shape[1:3] != (self._world.frame_px, self._world.frame_px):
            return [None] * len(frames_BHW3)
        return [scene.to_text() for scene in read_scenes(frames_BHW3, self._world)]

    def recognised(self, frame_HW3: np.ndarray) -> str | None:
        """The state that the oracle reads; None when the frame does not look like it."""
        (state,) = self.states(frame_HW3[None])
        if state is None:
            return None
        cells = np.array(Scene.from_text(state).cells)
        kinds = cells[cells > 0]
        if len(set(kinds.tolist())) < len(kinds):  # no kind occurs twice in this world
            return None
        drawn = self.picture(state).astype(np.float32)
        differs = float(np.abs(drawn - frame_HW3).mean()) > _MAX_DIFFERENCE
        return None if differs else state

    def examples(self, data: Place) -> list[ExampleScene]:
        """Photographs of tables that no clip shows."""
        return example_scenes(self._cfg, data)

    def film(self, split: Split, num_pairs: int, out: Place, progress: Progress) -> None:
        """Film episodes without any transition that the base was pretrained on."""
        seen = seen_transitions(self._cfg.base_path())
        film_split(split, self._world, num_pairs, self._cfg.seed, out, progress, seen=seen)

    def keyframes(self, split: Split) -> KeyframeConfig:
        """Settings that pick one frame of every state."""
        return filmed_keyframes(self._world, split)

    def truth(self, pairs: pa.Table, out: Place) -> pa.Table:
        """Ground truth of the pairs (TRUTH_SCHEMA)."""
        return truth_table(pairs, out, self._world.hold_frames)

    def picture(self, state: str) -> np.ndarray:
        """The scene in even light, every object in the middle of its cell."""
        cells = np.array([Scene.from_text(state).cells])
        drawn = render_cells(cells, np.zeros((*cells.shape, 2)), self._world.cell_px)
        frame: np.ndarray = np.rint(255 * drawn[0]).astype(np.uint8)
        return frame

    def num_pixels(self, split: Split, num_pairs: int) -> int:
        """Pixels of all frames of the clips."""
        world, num_actions = self._world, actions_per_clip(self._world, split)
        per_state = (world.frame_px * world.film_scale) ** 2 * world.hold_frames
        return math.ceil(num_pairs / num_actions) * (num_actions + 1) * per_state


@lru_cache(maxsize=65_536)
def _outcome(sentence: str, state: str) -> str | None:
    action = parse(sentence)
    scene = None if action is None else apply(Scene.from_text(state), action)
    return None if scene is None else scene.to_text()
