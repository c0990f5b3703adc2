"""Pretraining corpus of the tiny base: pictures, captions, questions, unlabelled video frames.

No action sentence and no labelled transition is in it. Two-picture questions are asked about
pictures that no single action connects (checked for every pair), so that "what differs" is
learnt as looking, not as naming actions. Unlabelled frame pairs carry no text at all.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from dynamics.core.config import WorldConfig
from dynamics.core.progress import Progress, silent
from dynamics.core.seeds import numpy_rng
from dynamics.models.image_tokenizer import ImageTokenizer
from dynamics.tabletop.render import (
    carry_offsets,
    downscale,
    expose,
    light,
    render_cells,
    sample_lighting,
    sample_offsets,
)
from dynamics.tabletop.scene import (
    COLOURS,
    KINDS,
    NUM_KINDS,
    SHAPES,
    SIDES,
    Kind,
    Scene,
    Side,
    all_actions,
    apply,
    sample_action,
    sample_scene,
    transition_key,
)


def cell_name(cell: int, grid: int) -> str:
    """``a1`` is the top left cell: letters are columns, digits rows."""
    row, column = divmod(cell, grid)
    return f"{chr(ord('a') + column)}{row + 1}"


def base_words(grid: int) -> list[str]:
    """Every word of captions, questions and answers."""
    cells = [cell_name(cell, grid) for cell in range(grid * grid)]
    sides = " ".join(SIDES).split()
    ask = {"what", "where", "at", "beside", "path", "same", "different", "only", "first", "second"}
    other = {"nothing", "nowhere", "elsewhere", "edge", ",", "?"}
    return sorted({*cells, *sides, *COLOURS, *SHAPES, *ask, *other})


@dataclass(frozen=True, slots=True)
class Corpus:
    """Pictures as scenes and codes."""

    grid: int
    first: list[Scene]
    second: list[Scene]
    """Row i of `first` and `second` are two pictures that questions compare."""
    first_codes: np.ndarray
    second_codes: np.ndarray
    video_source_codes: np.ndarray
    """Consecutive states of unlabelled videos, int64 [P, L]."""
    video_target_codes: np.ndarray
    seen: np.ndarray
    """`video_keys` of the videos."""


def reachable(source: Scene, target: Scene) -> bool:
    """True when one action leads from source to target."""
    return any(apply(source, action) == target for action in all_actions(source))


def edit(scene: Scene, rng: np.random.Generator) -> Scene:
    """Another picture with some of the same objects.

    Each object stays, goes elsewhere, leaves or is replaced, at random.
    """
    cells = list(scene.cells)
    for cell, kind in enumerate(scene.cells):
        if not kind or rng.random() < 0.45:
            continue
        free = [c for c, value in enumerate(cells) if not value]
        absent = [k for k in range(1, NUM_KINDS + 1) if k not in cells]
        fate = rng.integers(4)
        cells[cell] = int(rng.choice(absent)) if fate == 1 else 0
        if fate in (0, 3):
            cells[int(rng.choice(free))] = kind
    return Scene(scene.grid, tuple(cells))


def sample_doubles(num: int, world: WorldConfig, seed: int) -> tuple[list[Scene], list[Scene]]:
    """Picture pairs that no action connects in either direction: half share objects."""
    rng = numpy_rng(seed, "base-doubles")
    first: list[Scene] = []
    second: list[Scene] = []
    while len(first) < num:
        a = sample_scene(rng, world.grid, world.min_objects - 1, world.max_objects)
        unrelated = rng.random() < 0.25
        b = (
            sample_scene(rng, world.grid, world.min_objects - 1, world.max_objects)
            if unrelated
            else edit(a, rng)
        )
        if a != b and b.objects and not reachable(a, b) and not reachable(b, a):
            first.append(a)
            second.append(b)
    return first, second


def sample_episodes(num: int, length: int, world: WorldConfig, seed: int) -> list[list[Scene]]:
    """State sequences of unlabelled videos, ``length + 1`` states each."""
    rng = numpy_rng(seed, "base-videos")
    episodes = []
    for _ in range(num):
        states = [sample_scene(rng, world.grid, world.min_objects, world.max_objects)]
        for _ in range(length):
            target = apply(states[-1], sample_action(rng, states[-1], world.min_objects - 1))
            assert target is not None
            states.append(target)
        episodes.append(states)
    return episodes


def video_keys(episodes: list[list[Scene]]) -> np.ndarray:
    """Sorted `transition_key` of every consecutive pair of states, uint32."""
    keys = {transition_key(*pair) for states in episodes for pair in pairwise(states)}
    return np.array(sorted(keys), dtype=np.uint32)


def photograph_groups(
    groups: list[list[Scene]], world: WorldConfig, images: ImageTokenizer, rng: np.random.Generator
) -> np.ndarray:
    """Codes [num groups, group size, L]; a group shares its light and its objects' offsets."""
    cells, offsets, lights = [], [], []
    for group in groups:
        lighting, offset = sample_lighting(rng), sample_offsets(rng, world.grid)
        for index, scene in enumerate(group):
            if index:
                offset = carry_offsets(group[index - 1], scene, offset)
            cells.append(scene.cells)
            offsets.append(offset)
            lights.append(lighting)
    canvas = render_cells(np.array(cells), np.array(offsets), world.cell_px * world.film_scale)
    lit = np.concatenate(
        [light(frame[None], lamp) for frame, lamp in zip(canvas, lights, strict=True)]
    )
    codes = images.encode(downscale(expose(lit, rng), world.frame_px))
    return codes.reshape(len(groups), len(groups[0]), -1)


def build_corpus(
    world: WorldConfig,
    images: ImageTokenizer,
    *,
    num_doubles: int,
    num_episodes: int,
    episode_length: int,
    seed: int,
    progress: Progress = silent,
) -> Corpus:
    """Sample, photograph and encode everything."""
    first, second = sample_doubles(num_doubles, world, seed)
    doubles = [list(pair) for pair in zip(first, second, strict=True)]
    episodes = sample_episodes(num_episodes, episode_length, world, seed)
    rng = numpy_rng(seed, "base-photographs")

    def encode(groups: list[list[Scene]], what: str) -> np.ndarray:
        parts = []
        for start in range(0, len(groups), 256):
            parts.append(photograph_groups(groups[start : start + 256], world, images, rng))
            progress(min(start + 256, len(groups)), len(groups), what)
        return np.concatenate(parts)

    double_codes, video_codes = encode(doubles, "pictures"), encode(episodes, "videos")
    width = video_codes.shape[-1]
    return Corpus(
        grid=world.grid,
        first=first,
        second=second,
        first_codes=double_codes[:, 0],
        second_codes=double_codes[:, 1],
        video_source_codes=video_codes[:, :-1].reshape(-1, width),
        video_target_codes=video_codes[:, 1:].reshape(-1, width),
        seen=video_keys(episodes),
    )


QA = tuple[str, str]


def caption(scene: Scene) -> str:
    """Objects with their cells, in cell order: ``red ring a1 , blue cross c3``."""
    parts = [
        f"{KINDS[kind - 1]} {cell_name(cell, scene.grid)}"
        for cell, kind in enumerate(scene.cells)
        if kind
    ]
    return " , ".join(parts)


def _name(kind: int) -> str:
    return str(KINDS[kind - 1]) if kind else "nothing"


def _some_kind(rng: np.random.Generator, *scenes: Scene) -> Kind:
    """A random kind, mostly one that is on the tables."""
    present = [kind for scene in scenes for kind in scene.objects]
    return (
        KINDS[int(rng.integers(NUM_KINDS))]
        if rng.random() < 0.15
        else present[int(rng.integers(len(present)))]
    )


def _some_cell(rng: np.random.Generator, scene: Scene) -> int:
    """An occupied cell two times out of three."""
    occupied = [cell for cell, kind in enumerate(scene.cells) if kind]
    if rng.random() < 0.66:
        return occupied[int(rng.integers(len(occupied)))]
    return int(rng.integers(len(scene.cells)))


def _where(scene: Scene, kind: Kind) -> str:
    cell = scene.cell_of(kind)
    return "nowhere" if cell is None else cell_name(cell, scene.grid)


def ask_about_one(scene: Scene, rng: np.random.Generator) -> QA:
    """A question about one picture."""
    match rng.integers(3):
        case 0:
            cell = _some_cell(rng, scene)
            return f"what at {cell_name(cell, scene.grid)} ?", _name(scene.cells[cell])
        case 1:
            kind = _some_kind(rng, scene)
            return f"where {kind} ?", _where(scene, kind)
        case _:
            side, kind, beside = _some_side(scene, rng)
            return f"what {side} {kind} ?", beside


def ask_about_two(first: Scene, second: Scene, rng: np.random.Generator) -> QA:
    """A question that compares two pictures; how objects lie to each other comes most often."""
    chosen, which = ((first, "first"), (second, "second"))[int(rng.integers(2))]
    match rng.integers(12):
        case 0:
            cell = _some_cell(rng, chosen)
            return f"what at {cell_name(cell, first.grid)} {which} ?", _name(chosen.cells[cell])
        case 1:
            kind = _some_kind(rng, first, second)
            return f"where {kind} {which} ?", _where(chosen, kind)
        case 2:
            cell = _compared_cell(first, second, rng)
            answer = "same" if first.cells[cell] == second.cells[cell] else "different"
            return f"{cell_name(cell, first.grid)} same ?", answer
        case 3:
            cell = _compared_cell(first, second, rng)
            name = cell_name(cell, first.grid)
            return f"what at {name} ?", f"{_name(first.cells[cell])} , {_name(second.cells[cell])}"
        case 4:
            kind = _some_kind(rng, first, second)
            return f"where {kind} ?", f"{_where(first, kind)} {_where(second, kind)}"
        case 5:
            other = second if chosen is first else first
            kinds = [kind for kind in chosen.objects if kind not in other.objects]
            return f"only {which} ?", _list(kinds)
        case 6:
            return "elsewhere ?", _list(_elsewhere(first, second))
        case 7 | 8:
            kind = _some_kind(rng, chosen)
            return f"beside {kind} {which} ?", _beside(chosen, kind)
        case 9:
            side, kind, beside = _some_side(chosen, rng)
            return f"what {side} {kind} {which} ?", beside
        case _:
            kinds = _elsewhere(first, second)
            kind = kinds[int(rng.integers(len(kinds)))] if kinds else _some_kind(rng, first, second)
            return f"path {kind} ?", _path(first, second, kind)


def neighbours(scene: Scene, kind: Kind) -> list[tuple[Side, Kind]]:
    """Other objects beside an object on the table, each with the side that it is on."""
    here = scene.cell_of(kind)
    found: list[tuple[Side, Kind]] = []
    for other in scene.objects:
        there = scene.cell_of(other)
        assert there is not None
        found += [(side, other) for side in SIDES if scene.neighbour(there, side) == here]
    return found


def _beside(scene: Scene, kind: Kind) -> str:
    """``left of red ring , above blue cross``."""
    if scene.cell_of(kind) is None:
        return "nowhere"
    return " , ".join(f"{side} {other}" for side, other in neighbours(scene, kind)) or "nothing"


def _some_side(scene: Scene, rng: np.random.Generator) -> tuple[Side, Kind, str]:
    """A side, an object, and what is there: another object, ``nothing`` or the ``edge``."""
    kind = scene.objects[int(rng.integers(len(scene.objects)))]
    side = SIDES[int(rng.integers(len(SIDES)))]
    here = scene.cell_of(kind)
    assert here is not None
    beside = scene.neighbour(here, side)
    return side, kind, "edge" if beside is None else _name(scene.cells[beside])


def _elsewhere(first: Scene, second: Scene) -> list[Kind]:
    """Objects that lie in another cell of the second picture."""
    both = [kind for kind in first.objects if kind in second.objects]
    return [kind for kind in both if first.cell_of(kind) != second.cell_of(kind)]


def _path(first: Scene, second: Scene, kind: Kind) -> str:
    """Steps from an object's first cell to its second: ``left of left of above``."""
    here, there = first.cell_of(kind), second.cell_of(kind)
    if here is None or there is None:
        return "nowhere"
    (row, column), (to_row, to_column) = divmod(here, first.grid), divmod(there, first.grid)
    across = ["left of"] * (column - to_column) + ["right of"] * (to_column - column)
    down = ["above"] * (row - to_row) + ["below"] * (to_row - row)
    return " ".join([*across, *down]) or "same"


def _compared_cell(first: Scene, second: Scene, rng: np.random.Generator) -> int:
    """A cell that differs half of the time."""
    different = [
        c for c, (a, b) in enumerate(zip(first.cells, second.cells, strict=True)) if a != b
    ]
    if rng.random() < 0.5:
        return different[int(rng.integers(len(different)))]
    return _some_cell(rng, first)


def _list(kinds: list[Kind]) -> str:
    return " , ".join(map(str, kinds)) or "nothing"
