"""Sentences that the base cannot read or the IDM cannot write."""

from collections import Counter

from dynamics.models.tokens import Tokens
from dynamics.plan.findings.finding import Evidence, Finding, percent

REFUSED = 0.1
"""Share of the sentences with unknown words from which on they are not what is trained on."""
_SHOWN = 6


def unknown_words(evidence: Evidence) -> Finding:
    """Does the base's tokenizer know every word?"""
    tokens = evidence.tokens
    said = [*evidence.labelled["action"].to_pylist(), *evidence.heldout["action"].to_pylist()]
    bad = Counter(action for action in said if _has_unknown(tokens, action))
    if not bad:
        return Finding(level="fine", found="the base knows every word of the sentences")
    share = sum(bad.values()) / len(said)
    words = dict.fromkeys(
        word for action in bad for word in action.split() if _has_unknown(tokens, word)
    )
    example = bad.most_common(1)[0][0]
    read = " ".join(tokens.text([one]) or "<unk>" for one in tokens.text_ids(example))
    listed = ", ".join(list(words)[:_SHOWN]) + (", ..." if len(words) > _SHOWN else "")
    return Finding(
        level="refuse" if share >= REFUSED else "warn",
        found=f"{percent(share)} of the sentences have words that {evidence.cfg.model.base} does "
        f"not know ({len(words)}: {listed}): of {example!r} it reads {read!r}",
        remedy="set model.base to a checkpoint that knows them, or write the sentences in its "
        "words",
    )


def _has_unknown(tokens: Tokens, text: str) -> bool:
    """True when a part of the text is no word of the base's: it has no text of its own."""
    return any(not tokens.text([token]) for token in tokens.text_ids(text))


def long_sentences(evidence: Evidence) -> Finding:
    """Can the IDM write the sentences to their end?"""
    most = evidence.cfg.label.max_action_tokens
    needed = [
        len(evidence.tokens.text_ids(action)) + 1
        for action in set(evidence.labelled["action"].to_pylist())
    ]
    over = sum(one > most for one in needed) / len(needed)
    if not over:
        return Finding(level="fine", found=f"every sentence ends within {most} tokens")
    return Finding(
        level="refuse" if over > 0.5 else "warn",
        found=f"{percent(over)} of the sentences need up to {max(needed)} tokens with their end, "
        f"and the IDM writes at most {most}",
        remedy=f"label.max_action_tokens={max(needed)}",
    )
