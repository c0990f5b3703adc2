"""Minigrid as a domain: sentences of its actions, rules of the level, an oracle for frames."""

import math
import re
from collections.abc import Iterator
from functools import cache, lru_cache
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from dynamics.core.config import KeyframeConfig, LoopConfig
from dynamics.core.domain import ExampleScene, Split
from dynamics.core.errors import UserError
from dynamics.core.places import Place
from dynamics.core.progress import Progress
from dynamics.core.records import stable_hash
from dynamics.core.seeds import numpy_rng
from dynamics.data.video.filmed import Filmed, truth_table, write_clips
from dynamics.worlds.environment import need_package, open_env
from dynamics.worlds.record import Step, filmed_picture, held_keyframes, steps, to_clip

if TYPE_CHECKING:
    from dynamics.worlds.minigrid.rules import Rules

_HELD_OUT_OF = 10
"""One transition in so many is held out: no clip of the labelled set or the pool shows it, of any
seed. Levels are small, so that other clips would show most held-out pairs, too."""
_MOST_UNSEEN = 40
"""Most actions before a clip begins: doors are then open in some, and keys carried."""
_LONGEST = 400
"""Pictures after which another episode is tried."""
_EPISODES = 1000
"""Episodes that are tried for a clip; most need one or two."""
_MAX_DIFFERENCE = 20.0
"""Mean absolute difference, of 255, between a frame and the drawing of the state read from it:
0.5 and less on filmed frames, 60 and more on noise."""


class Minigrid:
    """`dynamics.core.domain.Domain` and its `Simulator`, of the level ``world.env``."""

    def __init__(self, cfg: LoopConfig) -> None:
        if cfg.world.env is None:
            raise UserError(
                "domain minigrid needs its level: set world.env, e.g. MiniGrid-DoorKey-6x6-v0"
            )
        need_package("minigrid", "domain minigrid")
        self._cfg, self._world, self._level = cfg, cfg.world, cfg.world.env

    @property
    def simulator(self) -> "Minigrid":
        """Levels film their own episodes."""
        return self

    def meaning(self, sentence: str) -> str:
        """The sentence in the one form that it has; "" outside the language."""
        found = _parsed(sentence)
        return "" if found is None else found.group()

    def kind(self, sentence: str) -> str:
        """The verb, e.g. ``pick up``; "" outside the language."""
        found = _parsed(sentence)
        return "" if found is None else found["verb"] or found.group().split()[0]

    def outcome(self, sentence: str, state: str) -> str | None:
        """The state that the level's rules give; None where the sentence leads to none."""
        return _outcome(self._level, sentence, state)

    def states(self, frames_BHW3: np.ndarray) -> list[str | None]:
        """The states that the oracle reads."""
        return [self._read(frame)[0] for frame in frames_BHW3]

    def recognised(self, frame_HW3: np.ndarray) -> str | None:
        """The state that the oracle reads; None when the frame does not look like it."""
        state, differs = self._read(frame_HW3)
        return state if differs <= _MAX_DIFFERENCE else None

    def _read(self, frame_HW3: np.ndarray) -> tuple[str, float]:
        from dynamics.worlds.minigrid.oracle import read_state

        rules = _rules(self._level)
        return read_state(frame_HW3, rules.width, rules.height)

    def examples(self, data: Place) -> list[ExampleScene]:
        """None: the clips of a run show most pictures of a small level."""
        return []

    def film(self, split: Split, num_pairs: int, out: Place, progress: Progress) -> None:
        """Film episodes; held-out pairs are transitions that no other split shows."""
        length = self._actions_per_clip(split)
        env, actor = open_env(self._level)

        def film(index: int) -> Filmed:
            rng = numpy_rng(self._cfg.seed, "film", split, index)
            for _ in range(_EPISODES):
                if taken := self._window(steps(env, actor, rng), split, length, rng):
                    return to_clip(taken, self._world.hold_frames, self._world.film_scale)
            raise UserError(
                f"{self._level}: in {_EPISODES} episodes no {length} sentences in a row led to "
                "what followed: others move there, too; film it with dynamics film --env instead"
            )

        num_clips = math.ceil(num_pairs / length)
        write_clips(out, num_clips, film, self._world.fps, progress, split, threads=1)

    def _window(
        self, episode: Iterator[Step], split: Split, length: int, rng: np.random.Generator
    ) -> list[Step] | None:
        """The first pictures of an episode, after some, whose transitions all belong to a split."""
        unseen = int(rng.integers(_MOST_UNSEEN))
        taken: list[Step] = []
        for number, step in enumerate(islice(episode, _LONGEST)):
            if taken and not self._belongs(taken[-1].state, step, split):
                taken = []
            taken.append(step)
            if number >= unseen and len(taken) > length:
                return taken[-length - 1 :]
        return None

    def _belongs(self, before: str, step: Step, split: Split) -> bool:
        held_out = int(stable_hash(f"{before} {step.sentence}")[:8], 16) % _HELD_OUT_OF == 0
        truly = bool(step.sentence) and self.outcome(step.sentence, before) == step.state
        return truly and held_out == (split == "heldout")

    def _actions_per_clip(self, split: Split) -> int:
        """Held-out clips give one pair each, so that held-out pairs are independent scenes."""
        return 1 if split == "heldout" else self._world.actions_per_clip

    def keyframes(self, split: Split) -> KeyframeConfig:
        """Settings that pick one frame of every state."""
        return held_keyframes(self._actions_per_clip(split), self._world.hold_frames)

    def truth(self, pairs: pa.Table, out: Place) -> pa.Table:
        """Ground truth of the pairs (TRUTH_SCHEMA)."""
        return truth_table(pairs, out, self._world.hold_frames)

    def picture(self, state: str) -> np.ndarray:
        """The level as it is filmed."""
        return filmed_picture(_rules(self._level).draw(state), self._world.film_scale)

    def num_pixels(self, split: Split, num_pairs: int) -> int:
        """Pixels of all frames of the clips."""
        from dynamics.worlds.minigrid.rules import TILE_PX

        length = self._actions_per_clip(split)
        rules = _rules(self._level)
        side = max(rules.width, rules.height) * TILE_PX * self._world.film_scale
        frames = math.ceil(num_pairs / length) * (length + 1) * self._world.hold_frames
        return int(frames * side**2)


# Once a process: making a level takes longer than asking it.


@cache
def _rules(level: str) -> "Rules":
    from dynamics.worlds.minigrid.rules import Rules

    return Rules(level)


@lru_cache(maxsize=65_536)
def _outcome(level: str, sentence: str, state: str) -> str | None:
    return _rules(level).outcome(sentence, state)


def _parsed(sentence: str) -> re.Match[str] | None:
    from dynamics.worlds.minigrid.rules import parsed

    return parsed(sentence)
