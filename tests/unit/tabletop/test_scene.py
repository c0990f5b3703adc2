import numpy as np
import pytest

from dynamics.tabletop.language import WORDINGS, action_only_words, parse, say
from dynamics.tabletop.scene import (
    ACTION_TYPES,
    KINDS,
    Kind,
    Move,
    Paint,
    Put,
    Remove,
    Scene,
    Slide,
    Swap,
    action_type,
    all_actions,
    apply,
    sample_action,
    sample_scene,
)

RED, BLUE, GREEN = Kind("red", "ring"), Kind("blue", "cross"), Kind("green", "square")


def table(text: str) -> Scene:
    """A 3x3 scene from three rows of r, b, g and dots."""
    letters = {".": 0, "r": RED.index, "b": BLUE.index, "g": GREEN.index}
    return Scene(3, tuple(letters[letter] for letter in text.replace(" ", "")))


@pytest.mark.parametrize(
    ("before", "action", "after"),
    [
        ("r.. ... ...", Move(RED, "right"), ".r. ... ..."),
        ("rb. ... ...", Move(RED, "right"), ".rb ... ..."),  # pushes what is in front
        ("rbg ... ...", Move(RED, "right"), "rbg ... ..."),  # a chain against the edge stays
        ("r.. ... b..", Slide(RED, "down"), "... r.. b.."),  # until an object
        ("r.. ... ...", Slide(RED, "right"), "..r ... ..."),  # until the edge
        ("r.. .b. ...", Put(RED, "right of", BLUE), "... .br ..."),
        ("r.. ..b ...", Put(RED, "right of", BLUE), "r.. ..b ..."),  # no cell there
        ("r.. .bg ...", Put(RED, "right of", BLUE), "r.. .bg ..."),  # occupied
        ("r.. ..b ...", Swap(RED, BLUE), "b.. ..r ..."),
        ("r.. ..b ...", Remove(BLUE), "r.. ... ..."),
    ],
)
def test_actions_do_what_they_say(before: str, action: object, after: str) -> None:
    assert apply(table(before), action) == table(after)


def test_painting_never_makes_a_kind_twice() -> None:
    twin = Kind("red", "cross")
    scene = Scene(3, (BLUE.index, twin.index, *[0] * 7))
    assert apply(scene, Paint(BLUE, "red")) == scene
    assert apply(scene, Paint(BLUE, "green")).cells[0] == Kind("green", "cross").index


def test_an_absent_object_makes_an_action_impossible() -> None:
    assert apply(table("r.. ... ..."), Move(BLUE, "left")) is None
    assert apply(table("r.. ... ..."), Swap(RED, BLUE)) is None


def test_scenes_survive_their_text() -> None:
    scene = sample_scene(np.random.default_rng(0), 4, 3, 4)
    assert Scene.from_text(scene.to_text()) == scene


def test_kind_indices_name_their_kind() -> None:
    assert [KINDS[kind.index - 1] for kind in KINDS] == list(KINDS)


def test_every_sampled_action_changes_the_scene_and_all_types_occur() -> None:
    rng = np.random.default_rng(1)
    seen = set()
    for _ in range(200):
        scene = sample_scene(rng, 4, 3, 4)
        action = sample_action(rng, scene)
        assert apply(scene, action) not in (None, scene)
        assert action in all_actions(scene)
        seen.add(action_type(action))
    assert seen == set(ACTION_TYPES)


def test_every_wording_of_every_action_parses_back() -> None:
    rng = np.random.default_rng(2)
    wordings = set()
    for _ in range(600):
        scene = sample_scene(rng, 3, 2, 4)
        action = sample_action(rng, scene)
        sentence = say(action, rng)
        assert parse(sentence) == action
        wordings.add((action_type(action), sentence.split()[0]))
    assert len(wordings) == sum(map(len, WORDINGS.values()))


@pytest.mark.parametrize(
    "sentence", ["", "push", "push the red ring", "push the red ring left left", "eat the red ring"]
)
def test_sentences_outside_the_grammar_mean_nothing(sentence: str) -> None:
    assert parse(sentence) is None


def test_verbs_are_action_words_and_slot_fillers_are_not() -> None:
    words = action_only_words()
    assert {"push", "swap", "dye"} <= set(words)
    assert not {"red", "ring", "left", "the"} & set(words)
