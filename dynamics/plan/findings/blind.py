"""Pairs whose codes do not change although their pixels do."""

from dynamics.plan.findings.finding import Evidence, Finding, percent, unchanged

REFUSED = 0.25
"""Share of the labelled or held-out pairs from which on a model cannot learn the actions."""
WARNED = 0.05


def blind_tokenizer(evidence: Evidence) -> Finding:
    """Does the image tokenizer see what happens?

    Ingest keeps no pair whose pixels are equal, so equal codes mean that the tokenizer lost it.
    """
    seen = {name: unchanged(pairs) for name, pairs in evidence.sets.items() if pairs.num_rows}
    counts = ", ".join(f"{same.sum():,} of {len(same):,} {name}" for name, same in seen.items())
    worst = max(float(seen[name].mean()) for name in ("labelled", "held-out"))
    base = evidence.cfg.model.base
    if worst <= WARNED:
        return Finding(level="fine", found=f"the codes of {counts} pairs stay the same")
    return Finding(
        level="refuse" if worst > REFUSED else "warn",
        found=f"the image tokenizer of {base} is blind to what happens: {counts} pairs have the "
        f"same codes before and after, though their pixels differ ({percent(worst)} at worst)",
        remedy="set model.base to a checkpoint whose image tokenizer knows such pictures; labels "
        "and training cannot mend it",
    )
