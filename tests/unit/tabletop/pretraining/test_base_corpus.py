import json
import re
from pathlib import Path

import numpy as np

from dynamics.core.config import REPOSITORY_ROOT, WorldConfig
from dynamics.data.video.filmed import CLIPS_SCHEMA
from dynamics.tabletop.film import film_split
from dynamics.tabletop.language import KIND_BY_NAME, action_only_words
from dynamics.tabletop.pretraining.base_corpus import (
    ask_about_one,
    ask_about_two,
    base_words,
    caption,
    neighbours,
    reachable,
    sample_doubles,
    sample_episodes,
    video_keys,
)
from dynamics.tabletop.scene import Kind, Scene
from dynamics.tabletop.seen import seen_transitions

ASSETS = REPOSITORY_ROOT / "dynamics" / "assets"
WORLD = WorldConfig()


def test_no_action_verb_is_in_what_the_base_reads() -> None:
    rng = np.random.default_rng(0)
    first, second = sample_doubles(300, WORLD, 5)
    said: set[str] = set()
    for a, b in zip(first, second, strict=True):
        texts = [caption(a), *ask_about_one(a, rng), *ask_about_two(a, b, rng)]
        said |= set(" ".join(texts).split())
    assert said <= set(base_words(WORLD.grid))
    assert not said & set(action_only_words())


def test_every_answer_about_a_path_leads_there() -> None:
    rng = np.random.default_rng(1)
    first, second = sample_doubles(300, WORLD, 7)
    followed = 0
    for a, b in zip(first, second, strict=True):
        question, answer = ask_about_two(a, b, rng)
        if not question.startswith("path ") or answer == "nowhere":
            continue
        colour, shape = question.split()[1:3]
        kind = KIND_BY_NAME[f"{colour} {shape}"]
        place = a.cell_of(kind)
        for step in re.findall("left of|right of|above|below", answer):
            assert place is not None
            place = a.neighbour(place, step)
        assert place == b.cell_of(kind)
        followed += answer != "same"
    assert followed > 20


def test_neighbours_of_an_object_are_found_from_its_side() -> None:
    ring, cross = Kind("red", "ring"), Kind("blue", "cross")
    scene = Scene(3, (ring.index, cross.index, 0, 0, 0, 0, 0, 0, 0))
    assert neighbours(scene, ring) == [("left of", cross)]
    assert neighbours(scene, cross) == [("right of", ring)]


def test_no_action_connects_two_pictures_that_questions_compare() -> None:
    first, second = sample_doubles(200, WORLD, 6)
    pairs = list(zip(first, second, strict=True))
    assert not any(reachable(a, b) or reachable(b, a) for a, b in pairs)
    assert sum(bool(set(a.objects) & set(b.objects)) for a, b in pairs) > 50  # a real comparison


def test_filmed_splits_avoid_the_transitions_of_pretraining(tmp_path: Path) -> None:
    from itertools import pairwise

    from dynamics.storage.tables import read_table
    from dynamics.tabletop.scene import transition_key

    def keys(folder: Path) -> set[int]:
        rows = read_table(folder / "clips.parquet", CLIPS_SCHEMA).to_pylist()
        states = [[Scene.from_text(text) for text in row["states"]] for row in rows]
        return {transition_key(*pair) for clip in states for pair in pairwise(clip)}

    film_split("heldout", WORLD, 6, 0, tmp_path / "a")
    seen = frozenset(sorted(keys(tmp_path / "a"))[:3])
    film_split("heldout", WORLD, 6, 0, tmp_path / "b", seen=seen)
    assert not keys(tmp_path / "b") & seen
    assert len(keys(tmp_path / "b") & keys(tmp_path / "a")) == 3


def test_the_shipped_checkpoint_names_the_transitions_it_saw() -> None:
    """So that `film_split` can leave them out of seed, pool and held-out clips."""
    base = ASSETS / "tiny-4x4"
    made = json.loads((base / "recipe.json").read_text())
    corpus, world = made["corpus"], WorldConfig(**made["world"])
    few = sample_episodes(50, corpus["episode_length"], world, made["seed"])
    seen = seen_transitions(base)
    assert len(seen) > 0.95 * corpus["num_episodes"] * corpus["episode_length"]
    assert set(video_keys(few).tolist()) <= seen
