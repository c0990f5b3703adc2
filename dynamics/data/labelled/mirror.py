"""Mirrored pairs: the same action seen in a mirror, with the words that change places."""

import re
from collections.abc import Mapping


def mirrored(action: str, words: Mapping[str, str]) -> str:
    """The sentence of the mirrored pictures; ``words`` change places, each with its partner.

    Whole words in any case, so that ``{left: right}`` makes "Left of it" "Right of it" and leaves
    "leftover" alone.
    """
    partner = {**words, **{second: first for first, second in words.items()}}

    def swapped(match: re.Match[str]) -> str:
        found = partner.get(match[0].lower(), match[0])
        return found.capitalize() if match[0].istitle() else found

    return re.sub(r"\w+", swapped, action)
