"""Actions in words and back: a small grammar with several wordings an action type."""

import re
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from dynamics.tabletop.scene import (
    COLOURS,
    DIRECTIONS,
    SHAPES,
    SIDES,
    Action,
    ActionType,
    Kind,
    Move,
    Paint,
    Put,
    Remove,
    Slide,
    Swap,
    action_type,
)

WORDINGS: dict[ActionType, tuple[str, ...]] = {
    "move": (
        "push {obj} {direction}",
        "nudge {obj} {direction}",
        "shove {obj} one step {direction}",
    ),
    "slide": ("slide {obj} {direction}", "glide {obj} all the way {direction}"),
    "put": ("put {obj} {side} {other}", "place {obj} {side} {other}"),
    "swap": ("swap {obj} with {other}", "exchange {obj} and {other}", "trade {obj} for {other}"),
    "remove": ("remove {obj}", "take {obj} away", "discard {obj}"),
    "paint": ("paint {obj} {colour}", "turn {obj} {colour}", "dye {obj} {colour}"),
}

_OBJECT = rf"the (?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)})"
_SLOTS = {
    "obj": _OBJECT,
    "other": _OBJECT,
    "direction": "|".join(DIRECTIONS),
    "side": "|".join(SIDES),
    "colour": "|".join(COLOURS),
}
_BUILDERS: dict[ActionType, Callable[..., Action]] = {
    "move": Move,
    "slide": Slide,
    "put": Put,
    "swap": Swap,
    "remove": Remove,
    "paint": Paint,
}


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\{(\w+)\}", lambda m: f"(?P<{m[1]}>{_SLOTS[m[1]]})", template))


_PATTERNS = [(kind, _pattern(text)) for kind, texts in WORDINGS.items() for text in texts]


def say(action: Action, rng: np.random.Generator) -> str:
    """A sentence for the action, in one of its wordings."""
    wordings = WORDINGS[action_type(action)]
    template = wordings[int(rng.integers(len(wordings)))]
    slots = {name: getattr(action, name) for name in action.__slots__}
    named = {
        name: f"the {value}" if isinstance(value, Kind) else value for name, value in slots.items()
    }
    return template.format(**named)


@lru_cache(maxsize=65_536)
def parse(sentence: str) -> Action | None:
    """The action that a sentence means, None when it is not a sentence of the grammar."""
    text = " ".join(sentence.split())
    for kind, pattern in _PATTERNS:
        if match := pattern.fullmatch(text):
            slots = {name: _value(name, value) for name, value in match.groupdict().items()}
            return _BUILDERS[kind](**slots)
    return None


def _value(name: str, text: str) -> object:
    if name not in ("obj", "other"):
        return text
    _, colour, shape = text.split()
    return KIND_BY_NAME[f"{colour} {shape}"]


KIND_BY_NAME = {f"{c} {s}": Kind(c, s) for c in COLOURS for s in SHAPES}
_SLOT_WORDS = set(" ".join((*COLOURS, *SHAPES, *DIRECTIONS, *SIDES, "the")).split())


def action_words() -> list[str]:
    """Every word that an action sentence can hold, sorted."""
    fixed = " ".join(text for texts in WORDINGS.values() for text in texts)
    return sorted(_SLOT_WORDS | set(re.sub(r"\{\w+\}", " ", fixed).split()))


def action_only_words() -> list[str]:
    """Verbs and other words of the wordings themselves: the base must never have met them."""
    return [word for word in action_words() if word not in _SLOT_WORDS]
