"""Pairs whose change the image tokenizer does not see."""

import numpy as np
from numpy.typing import NDArray

from dynamics.plan.findings.finding import Evidence, Finding, codes_of, pretrained, unchanged
from dynamics.pretraining.image_tokenizer import BLIND, DIM, LOST, change_likeness
from dynamics.pretraining.make import RECIPE_FILE
from dynamics.storage.run_folder import read_json

REFUSED = 0.25
"""Share of the pairs with equal codes from which on a model cannot learn the actions."""


def blind_tokenizer(evidence: Evidence) -> Finding:
    """Does the image tokenizer see what happens?

    Ingest keeps no pair whose pixels are equal, so equal codes mean that the tokenizer lost it.
    Codes may also flicker without a meaning: so where real frames are kept, the change between the
    two decoded frames is compared with that between the real ones.
    """
    seen = {name: unchanged(pairs) for name, pairs in evidence.sets.items() if pairs.num_rows}
    counts = ", ".join(f"{same.sum():,} of {len(same):,} {name}" for name, same in seen.items())
    worst = max(float(seen[name].mean()) for name in ("labelled", "held-out"))
    found = f"{counts} pairs have the same codes before and after, though their pixels differ"
    likeness = _likeness(evidence)
    typical = 1.0
    if len(likeness):
        typical = float(np.median(likeness))
        found += (
            f"; decoded again, the change looks like the real one in {(likeness >= LOST).sum()} of "
            f"{len(likeness)} held-out pairs (median likeness {typical:.2f} of 1)"
        )
    if worst <= BLIND and typical >= DIM:
        return Finding(level="fine", found=found)
    return Finding(
        level="refuse" if worst > REFUSED or typical < LOST else "warn",
        found=f"the image tokenizer of {evidence.cfg.model.base} is blind to what happens here: "
        f"{found}",
        remedy=f"{_remedy(evidence)}; labels and training cannot mend it",
    )


def _remedy(evidence: Evidence) -> str:
    """A base that was made from clips is made anew, to see more; any other one is replaced."""
    path = evidence.cfg.base_path() / RECIPE_FILE
    recipe = read_json(path) if path.is_file() else {}
    if "clips" not in recipe:  # the tabletop's corpus has none, and published bases no recipe
        return pretrained(evidence)
    steps = recipe["pretrain"]["tokenizer_steps"]
    side = round(recipe["image_tokenizer"]["codes_a_frame"] ** 0.5)
    return (
        "make it anew in another folder: dynamics pretrain, with more pretrain.tokenizer_steps "
        f"(it took {steps:,}) or a larger frame, by more than {side} in pretrain.codes_a_side"
    )


def _likeness(evidence: Evidence) -> NDArray[np.float64]:
    """Per held-out pair with real frames, the correlation of the decoded and the real change."""
    pair_ids = evidence.heldout["pair_id"].to_pylist()
    rows = [row for row, pair in enumerate(pair_ids) if pair in evidence.pictures]
    if not rows:  # all was filmed
        return np.zeros(0)
    ends = codes_of(evidence.heldout.take(rows))
    source, target = (evidence.images.decode(codes_BL) for codes_BL in ends)
    real = np.stack([np.stack(evidence.pictures[pair_ids[row]]) for row in rows])
    return change_likeness((real[:, 0], real[:, 1]), (source, target))
