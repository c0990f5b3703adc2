"""Sentences that the base cannot read or the IDM cannot write."""

from dynamics.plan.findings.finding import Evidence, Finding, percent, pretrained

_SHOWN = 6


def unknown_words(evidence: Evidence) -> Finding:
    """Does the base know every word? Training and evaluation read no sentence with another."""
    unknown: dict[str, str] = {}
    bad = 0
    example = ""
    for table in (evidence.labelled, evidence.heldout):
        places = zip(table["action"].to_pylist(), table["clip_path"].to_pylist(), strict=True)
        for action, clip in places:
            if found := evidence.tokens.unknown_words(action):
                bad, unknown = bad + 1, unknown | found
                example = example or f"{action!r} of {clip}"
    if not bad:
        return Finding(level="fine", found="the base knows every word of the sentences")
    share = bad / (evidence.labelled.num_rows + evidence.heldout.num_rows)
    named = [f"{word} (nearest: {near})" for word, near in list(unknown.items())[:_SHOWN]]
    return Finding(
        level="refuse",
        found=f"{percent(share)} of the sentences have words that {evidence.cfg.model.base} does "
        f"not know ({len(unknown)}: {', '.join(named)}{', ...' * (len(unknown) > _SHOWN)}), e.g. "
        f"{example}",
        remedy=f"{pretrained(evidence)}, or write the sentences in the words that it knows",
    )


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
