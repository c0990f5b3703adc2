"""A learning curve on the labels at hand, by a cheap stand-in for the IDM."""

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from dynamics.core.seeds import numpy_rng
from dynamics.plan.findings.finding import Evidence, Finding, codes_of, percent
from dynamics.plan.findings.labels import ENOUGH, chance, meanings

SMALL = 200
"""Labels from which on a set is not refused for its size."""
_MOST = 1000
"""Labels, and held-out pairs, that the stand-in looks at."""
_DRAWS = 5
_RIDGE = 1.0


def learning_curve(evidence: Evidence) -> Finding:
    """Do more labels of this set help, and how far are they from enough?

    The stand-in is a ridge regression from the change of the codes (per cell: the code that goes,
    the code that comes) to the sentence. It is no IDM: a good one gets more of many labels. What is
    at chance for it at few labels has been so for the IDM, too.
    """
    labelled, heldout = (one[:_MOST] for one in meanings(evidence))
    features, asked = (
        _features(*codes_of(table.slice(0, _MOST)))
        for table in (evidence.labelled, evidence.heldout)
    )
    names = sorted(set(labelled))
    said_N = np.array([names.index(one) for one in labelled])
    true_B = np.array([names.index(one) if one in names else -1 for one in heldout])
    level = chance(labelled, heldout)
    sizes = sorted({max(1, round(len(labelled) * share)) for share in (0.25, 0.5, 1)})
    curve = {
        size: float(
            np.mean([_accuracy(features, said_N, asked, true_B, size, n) for n in range(_DRAWS)])
        )
        for size in sizes
    }
    shown = ", ".join(f"{percent(right)} from {size}" for size, right in curve.items())
    spread = 1.64 * np.sqrt(max(level, 1 / len(names)) / len(heldout))
    at_chance = curve[sizes[-1]] <= max(level, 1 / len(names)) + spread
    wanted = -(-ENOUGH * len(names) // 50) * 50
    few = len(labelled) < SMALL and len(labelled) < ENOUGH / 2 * len(names)
    line = (
        f"{len(labelled)} labels: a linear stand-in for the IDM names {shown} labels; chance is "
        f"{percent(level)}"
    )
    if not at_chance and not few:
        return Finding(level="fine", found=line)
    verdict = "; at chance" if at_chance else ""
    return Finding(
        level="refuse" if few and at_chance else "warn",
        found=line + verdict,
        remedy=f"about {wanted} labels would do, {ENOUGH} for each of {len(names)} sentences, by "
        "rule of thumb (dynamics annotate)"
        if few
        else "look whether sentences say what happens between the two frames",
    )


def _features(
    source_BL: NDArray[np.int64], target_BL: NDArray[np.int64]
) -> list[Counter[tuple[int, int]]]:
    """Per pair, the codes that go (-1) and come (1) by their cell."""
    found = []
    for source, target in zip(source_BL, target_BL, strict=True):
        own: Counter[tuple[int, int]] = Counter()
        for cell in np.flatnonzero(source != target).tolist():
            own[cell, int(source[cell])] -= 1
            own[cell, int(target[cell])] += 1
        found.append(own)
    return found


def _accuracy(
    features: list[Counter[tuple[int, int]]],
    said_N: NDArray[np.int64],
    asked: list[Counter[tuple[int, int]]],
    true_B: NDArray[np.int64],
    size: int,
    draw: int,
) -> float:
    """Share of the held-out pairs that the stand-in names from ``size`` labels, drawn."""
    rows = numpy_rng("learning curve", size, draw).permutation(len(said_N))[:size]
    columns = {key: n for n, key in enumerate({key: 0 for row in rows for key in features[row]})}
    taught_nF = _matrix([features[row] for row in rows], columns)
    asked_BF = _matrix(asked, columns)
    onehot_nC = np.eye(int(said_N.max()) + 1)[said_N[rows]]
    # The dual form: as many unknowns as labels, however many codes there are.
    kernel = taught_nF @ taught_nF.T + _RIDGE * np.eye(len(rows))
    scores_BC = asked_BF @ taught_nF.T @ np.linalg.solve(kernel, onehot_nC - onehot_nC.mean(0))
    scores_BC += onehot_nC.mean(0)
    return float(np.mean(scores_BC.argmax(1) == true_B))


def _matrix(
    rows: list[Counter[tuple[int, int]]], columns: dict[tuple[int, int], int]
) -> NDArray[np.float32]:
    found = np.zeros((len(rows), len(columns)), np.float32)
    for number, row in enumerate(rows):
        for key, value in row.items():
            if key in columns:
                found[number, columns[key]] = value
    return found
