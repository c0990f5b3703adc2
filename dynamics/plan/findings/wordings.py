"""Sentences that seem to mean the same and are written in several ways, by habit or by mistake."""

from collections import Counter
from collections.abc import Iterator
from difflib import get_close_matches
from itertools import islice

from dynamics.core.domain import normalised_text
from dynamics.plan.findings.finding import Evidence, Finding

RARE = 10
"""A word is taken for a slip of one that is so many times as frequent."""
_ALIKE, _LETTERS = 0.8, 4
"""Likeness of two such words (difflib's, 1 = equal), and the fewest letters of one."""
_MOST = 5000
"""Sentences of each set that are compared."""
_SHOWN = 3


def wordings(evidence: Evidence) -> Finding:
    """Are equal actions written in equal words?

    Every spelling is a sentence of its own to learn, with the labels of that spelling alone.
    """
    said = [
        action
        for table in (evidence.labelled, evidence.heldout)
        for action in table["action"].slice(0, _MOST).to_pylist()
    ]
    doubts = [*_spellings(said), *_slips(said)]
    if not doubts:
        return Finding(level="fine", found="no sentence looks like another spelling of one")
    more = f", and {len(doubts) - _SHOWN:,} more" if len(doubts) > _SHOWN else ""
    return Finding(
        level="warn",
        found=f"words that may mean the same: {', '.join(islice(doubts, _SHOWN))}{more}",
        remedy="write equal actions in equal words; dynamics annotate offers those that were used",
    )


def _spellings(said: list[str]) -> Iterator[str]:
    """Words that differ in case alone, and sentences in their full stop."""
    groups: dict[tuple[str, str], dict[str, None]] = {}
    for action in said:
        whole = normalised_text(action)
        groups.setdefault(("sentence", whole), {})[whole + "." * action.endswith(".")] = None
        # A first word may have its capital letter, as in all other sentences.
        for place, word in enumerate(action.rstrip(".").split()):
            kind = "word" if place else "first word"
            groups.setdefault((kind, word.casefold()), {})[word] = None
    for spellings in groups.values():
        if len(spellings) > 1:
            yield " and ".join(repr(one) for one in islice(spellings, 2))


def _slips(said: list[str]) -> Iterator[str]:
    """Rare words that look like a frequent one with the same first letter."""
    counts = Counter(word for action in said for word in normalised_text(action).split())
    by_letter: dict[str, list[str]] = {}
    for word in counts:
        by_letter.setdefault(word[0], []).append(word)
    for word, count in counts.items():
        if len(word) >= _LETTERS:
            frequent = [one for one in by_letter[word[0]] if counts[one] >= RARE * count]
            for meant in get_close_matches(word, frequent, 1, _ALIKE):
                yield f"{word!r} ({count:,}) and {meant!r} ({counts[meant]:,})"
