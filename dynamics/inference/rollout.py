"""Several actions in a row: each step's best frames are the next step's sources.

A beam follows the K best prefixes over all steps; with K = 1 every step takes the verifier's
favourite and goes on from it.

L codes a frame, N candidates a prefix, K prefixes, S actions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dynamics.core.seeds import derive_seed
from dynamics.inference.best_of_n import Prediction
from dynamics.inference.verifiers import Codes, Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutStep:
    """One action, imagined from every prefix that the beam holds."""

    action: str
    prediction: Prediction
    """Candidates drawn from the prefixes before the step; B is their number."""
    frames: Codes
    """[K, L]: frames that the beam goes on from, the best prefix first."""
    parents: NDArray[np.int64]
    """[K]: index of the earlier prefix that each one extends."""
    chosen: NDArray[np.int64]
    """[K]: index among that prefix's N candidates."""
    totals: Scores
    """[K]: the verifier's scores summed along the prefix, in nats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """An imagined episode of S actions."""

    frames: Codes
    """[S + 1, L]: the given frame, then one a step, of the prefix that was best at the end."""
    steps: tuple[RolloutStep, ...]
    """One per action, each with its candidates and scores."""


class Beam:
    """The best prefixes of a rollout so far, which the next step extends.

    Errors add up: nothing corrects a wrong frame later, a beam only puts the choice off. Prefixes
    that reach the same frame are one prefix, the better one. The first S steps of a longer rollout
    with the same seed are the same steps.
    """

    def __init__(self, source_L: Codes, *, seed: int, width: int = 1) -> None:
        self.frames = source_L[None]
        """[K, L]: last frames of the prefixes."""
        self._totals: Scores = np.zeros(1)
        self._seed = seed
        self._width = width
        self._position = 0

    def seeds(self) -> list[int]:
        """K seeds of the next step's draws."""
        return [_seed(self._seed, self._position, rank) for rank in range(len(self.frames))]

    def extend(self, action: str, prediction: Prediction) -> RolloutStep:
        """Go on from the best of the ``prediction`` [K, N] that ``action`` led to."""
        step = _extend(action, prediction, self._totals, self._width)
        self.frames, self._totals = step.frames, step.totals
        self._position += 1
        return step


def collect(source_L: Codes, steps: Sequence[RolloutStep]) -> Rollout:
    """The frames of the prefix that is best after the last step."""
    frames, rank = [], 0
    for step in reversed(steps):
        frames.append(step.frames[rank])
        rank = int(step.parents[rank])
    return Rollout(frames=np.stack([source_L, *reversed(frames)]), steps=tuple(steps))


def _seed(seed: int, position: int, rank: int) -> int:
    # The best prefix draws what a rollout without a beam would draw.
    return derive_seed(seed, position) if rank == 0 else derive_seed(seed, position, rank)


def _extend(action: str, prediction: Prediction, totals_K: Scores, beam: int) -> RolloutStep:
    """The ``beam`` best of all prefixes times candidates that differ in their frame."""
    scores_KN = np.nan_to_num(prediction.scores, nan=-np.inf) + totals_K[:, None]
    num_samples = scores_KN.shape[1]
    best: dict[bytes, int] = {}
    for flat in np.argsort(-scores_KN, axis=None, kind="stable"):
        parent, candidate = divmod(int(flat), num_samples)
        best.setdefault(prediction.candidates.codes[parent, candidate].tobytes(), int(flat))
        if len(best) == beam:
            break
    parents_K, chosen_K = np.divmod(np.array(list(best.values()), dtype=np.int64), num_samples)
    return RolloutStep(
        action=action,
        prediction=prediction,
        frames=prediction.candidates.codes[parents_K, chosen_K],
        parents=parents_K,
        chosen=chosen_K,
        totals=scores_KN[parents_K, chosen_K],
    )
