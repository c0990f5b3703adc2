"""Labels per sentence, chance level, and what the held-out pairs can tell."""

from collections import Counter

import numpy as np

from dynamics.core.domain import load_domain
from dynamics.plan.findings.finding import Evidence, Finding, codes_of, percent, unchanged

ENOUGH = 16
"""Labels of a sentence that usually do, by rule of thumb."""


def meanings(evidence: Evidence) -> tuple[list[str], list[str]]:
    """One text per meaning, of the labelled and of the held-out pairs."""
    domain = load_domain(evidence.cfg)
    tables = (evidence.labelled, evidence.heldout)
    labelled, heldout = (
        [domain.meaning(action) or action for action in table["action"].to_pylist()]
        for table in tables
    )
    return labelled, heldout


def chance(labelled: list[str], heldout: list[str]) -> float:
    """Share of the held-out pairs for which the labelled set's commonest sentence is right."""
    common = Counter(labelled).most_common(1)[0][0]
    return heldout.count(common) / len(heldout)


def label_counts(evidence: Evidence) -> Finding:
    """Has every sentence labels, and how well are figures known?"""
    labelled, heldout = meanings(evidence)
    counts = Counter(labelled)
    fewest, median, most = (int(np.quantile(list(counts.values()), q)) for q in (0, 0.5, 1))
    new = sorted(set(heldout) - set(counts))
    held = chance(labelled, heldout)
    spread = 98 / np.sqrt(len(heldout))
    line = (
        f"{len(labelled):,} labels of {len(counts):,} sentences, {fewest} to {most} each "
        f"(median {median}); always saying the commonest one is right for {percent(held)} of the "
        f"{len(heldout):,} held-out pairs, on which a share is known to +-{spread:.0f} points"
    )
    if new:
        shown = ", ".join(repr(one) for one in new[:3]) + (", ..." if len(new) > 3 else "")
        line += f"; held-out sentences without any label: {len(new)} ({shown})"
    line += evidence.counted("labelled")[1]
    if len(counts) == 1:
        return Finding(
            level="refuse",
            found=f"{line}; nothing can be told apart",
            remedy="labels of other actions, too (dynamics annotate)",
        )
    if median >= ENOUGH // 2 and not new and spread <= 15:
        return Finding(level="fine", found=line)
    return Finding(
        level="warn",
        found=line,
        remedy=f"about {ENOUGH} labels a sentence and 100 held-out pairs (dynamics annotate)"
        + (", and equal actions in equal words" if median == 1 else ""),
    )


def heldout_overlap(evidence: Evidence) -> Finding:
    """Are the held-out pairs others than those that are trained on?"""
    held = evidence.heldout
    clips = {
        name: set(evidence.sets[name]["clip_sha256"].to_pylist()) for name in ("labelled", "pool")
    }
    shared = {
        name: sum(one in known for one in held["clip_sha256"].to_pylist())
        for name, known in clips.items()
    }
    sees_B = ~unchanged(held)
    taught = {pair.tobytes() for pair in np.hstack(codes_of(evidence.labelled))}
    again = sum(
        pair.tobytes() in taught
        for pair, sees in zip(np.hstack(codes_of(held)), sees_B, strict=True)
        if sees
    )
    twice = int(sees_B.sum()) - len({p.tobytes() for p in np.hstack(codes_of(held))[sees_B]})
    line = (
        f"of {held.num_rows:,} held-out pairs {shared['labelled']} are from a file of the labelled "
        f"set, {shared['pool']} from one of the pool; {again} have the very codes of a labelled "
        f"pair, {twice} those of another held-out one"
    )
    if any(shared.values()):
        return Finding(
            level="refuse",
            found=line,
            remedy="take those files out of the labelled set, the pool or labelled.heldout_path",
        )
    few = again + twice <= 0.1 * held.num_rows
    remedy = "" if few else "hold out other clips: figures flatter a model that knows these"
    return Finding(level="fine" if few else "warn", found=line, remedy=remedy)
