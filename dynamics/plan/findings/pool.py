"""Pairs that the pool gives, a clip and a class."""

from collections import Counter

from dynamics.plan.findings.finding import Evidence, Finding

FEWEST = 20
"""Pairs below which the pool teaches nothing that the labelled set does not."""


def pool_pairs(evidence: Evidence) -> Finding:
    """Does the pool give enough pairs?"""
    num, (clips, left_out) = evidence.num_pool, evidence.counted("pool")
    of = f" from {clips:,} clips ({num / clips:.1f} a clip)" if clips else ""
    classes = Counter(evidence.pool["clip_class"].to_pylist())
    shares = sorted((count, name) for name, count in classes.items())
    if len(shares) > 1:
        of += f", {len(shares):,} classes of {shares[0][0]:,} to {shares[-1][0]:,}"
    line = f"the pool has {num:,} pairs{of}{left_out}"
    few = clips and num < clips
    if num >= FEWEST and not few and num >= evidence.labelled.num_rows:
        return Finding(level="fine", found=line)
    spacing = evidence.cfg.pool.keyframes.spacing_frames
    return Finding(
        level="refuse" if num < FEWEST else "warn",
        found=line,
        remedy=f"pool.keyframes.spacing_frames below {spacing}, pool.keyframes.min_change below "
        f"{evidence.cfg.pool.keyframes.min_change:g}, or more video; dynamics ingest --sheet shows "
        "what is left out",
    )
