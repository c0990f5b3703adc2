"""What an action sentence means, whichever way it is worded."""

from functools import lru_cache

from dynamics.tabletop.language import parse
from dynamics.tabletop.scene import Scene, action_type, apply


def kind_of(sentence: str) -> str:
    """The action's type, e.g. ``move``; empty for a sentence outside the grammar."""
    action = parse(sentence)
    return "" if action is None else action_type(action)


def same_action(said: str, true: str) -> bool:
    """Whether two sentences name one action; outside the grammar, whether they are equal."""
    return (parse(said) or said) == (parse(true) or true)


@lru_cache(maxsize=65_536)
def outcome(sentence: str, source_state: str) -> str | None:
    """The state after the sentence is carried out on a state, both as canonical scene text.

    None for a sentence outside the grammar and for one that names an object that is not there.
    """
    action = parse(sentence)
    scene = None if action is None else apply(Scene.from_text(source_state), action)
    return None if scene is None else scene.to_text()


def canonical_action(sentence: str) -> str:
    """One text per meaning of a tabletop sentence, "" outside the grammar."""
    action = parse(sentence)
    return "" if action is None else repr(action)
