"""A world-exact image tokenizer and scripted models, so that tests know every right answer.

The codes of a frame are the cells of its scene: every frame can be written down and read back.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
from PIL import Image

from dynamics.core.config import WorldConfig
from dynamics.core.records import TRANSITION_SCHEMA, TRUTH_SCHEMA
from dynamics.inference.decoder import Candidates
from dynamics.inference.idm import Caption
from dynamics.inference.sampling import SamplingParams
from dynamics.tabletop.language import parse, say
from dynamics.tabletop.oracle import read_cells
from dynamics.tabletop.render import render_cells
from dynamics.tabletop.scene import NUM_KINDS, Action, Scene, all_actions, apply, sample_scene

WORLD = WorldConfig(grid=3, min_objects=2, max_objects=4)


class CellTokenizer:
    """Codes are cells."""

    num_codes = NUM_KINDS + 1

    def __init__(self, world: WorldConfig = WORLD) -> None:
        self.world = world
        self.frame_px = world.frame_px
        self.num_tokens = world.grid**2

    def fit(self, picture: Image.Image) -> np.ndarray:
        return np.asarray(picture)

    def encode(self, frames_BHW3: np.ndarray) -> np.ndarray:
        return read_cells(frames_BHW3, self.world)

    def decode(self, codes_BL: np.ndarray) -> np.ndarray:
        centred = np.zeros((*codes_BL.shape, 2), np.float32)
        return np.rint(255 * render_cells(codes_BL, centred, self.world.cell_px)).astype(np.uint8)

    def encode_with_features(self, frames_BHW3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        codes_BL = self.encode(frames_BHW3)
        return codes_BL, codes_BL[..., None].astype(np.float32)


def scene(codes_L: Sequence[int]) -> Scene:
    return Scene(WORLD.grid, tuple(int(code) for code in codes_L))


def perform(codes_L: Sequence[int], sentence: str) -> tuple[int, ...] | None:
    """Codes after the action, None when it is impossible or meaningless."""
    action = parse(sentence)
    after = None if action is None else apply(scene(codes_L), action)
    return None if after is None else after.cells


class ScriptedIDM:
    """Knows which action happened; ``says`` may replace the sentence it writes."""

    digest = "idm"
    prompt_version = "1"

    def __init__(self, says: Callable[[str], str] = lambda sentence: sentence) -> None:
        self.says = says
        self.scored: list[tuple[int, ...]] = []

    def label(
        self, source_BL: np.ndarray, target_BL: np.ndarray, *, max_action_tokens: int
    ) -> list[Caption]:
        captions = []
        for source, target in zip(source_BL, target_BL, strict=True):
            after = scene(target)
            actions = [a for a in all_actions(scene(source)) if apply(scene(source), a) == after]
            sentence = say(actions[0], np.random.default_rng(0)) if actions else ""
            captions.append(Caption(action=self.says(sentence), token_logprobs=(-0.1,)))
        return captions

    def action_logprobs(
        self, source_BL: np.ndarray, target_BL: np.ndarray, actions: Sequence[str]
    ) -> np.ndarray:
        rows = list(zip(source_BL, target_BL, actions, strict=True))
        self.scored += [tuple(target.tolist()) for _, target, _ in rows]
        return np.array([-0.5 if perform(s, a) == tuple(t) else -6.0 for s, t, a in rows])


class ScriptedFDP:
    """Draws the right frame with probability ``skill``, else a copy; greedy: right if ``sure``."""

    def __init__(self, skill: float = 0.5, sure: Callable[[str], bool] = lambda action: True):
        self.images = CellTokenizer()
        self.skill = skill
        self.sure = sure

    def generate(
        self,
        source_BL: np.ndarray,
        actions: Sequence[str],
        sampling: SamplingParams,
        *,
        seeds: Sequence[int] = (),
    ) -> Candidates:
        codes = np.repeat(np.asarray(source_BL)[:, None], sampling.num_samples, axis=1)
        for row, (source, action) in enumerate(zip(source_BL, actions, strict=True)):
            greedy = sampling.greedy_first or not sampling.temperature
            right = np.full(len(codes[row]), self.sure(action))
            if drawn := len(right) - greedy:
                right[greedy:] = np.random.default_rng(seeds[row]).random(drawn) < self.skill
            codes[row, right] = perform(source, action) or source
        logprobs = np.full(codes.shape[:2], -3.0)
        return Candidates(codes, logprobs, logprobs)


def transition(source: Scene, action: Action, target: Scene, number: int) -> dict[str, object]:
    sentence = say(action, np.random.default_rng(number))
    return {
        "pair_id": f"pair-{number:04d}",
        "clip_sha256": "c",
        "clip_path": "c.mp4",
        "clip_class": "",
        "frame0": 2 * number,
        "frame1": 2 * number + 1,
        "t0_s": 0.0,
        "t1_s": 1.0,
        "motion": 0.1,
        "source_codes": list(source.cells),
        "target_codes": list(target.cells),
        "recognition": [1.0] * len(source.cells),
        "action": sentence,
        "origin": "labelled",
        "source_state": source.to_text(),
        "target_state": target.to_text(),
    }


def filmed(num_pairs: int, start: int = 0) -> tuple[pa.Table, pa.Table]:
    """Transitions of the 3x3 world and their truth; no scene repeats an object."""
    rows = []
    for number in range(start, start + num_pairs):
        rng = np.random.default_rng(number)
        source = sample_scene(rng, WORLD.grid, WORLD.min_objects, WORLD.max_objects)
        actions = all_actions(source)
        action = actions[int(rng.integers(len(actions)))]
        target = apply(source, action)
        assert target is not None
        rows.append(transition(source, action, target, number))
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    tables = [
        pa.table({name: columns[name] for name in schema.names}, schema=schema)
        for schema in (TRANSITION_SCHEMA, TRUTH_SCHEMA)
    ]
    return tables[0], tables[1]
