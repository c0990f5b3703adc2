"""Several actions in a row: each step's best frames are the next step's sources.

A beam follows the K best prefixes over all steps; with K = 1 every step takes the verifier's
favourite and goes on from it.

B sources, L codes a frame, N candidates a prefix, K prefixes, S actions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dynamics.core.config import VerifierName
from dynamics.core.seeds import derive_seed
from dynamics.inference.best_of_n import ActionScorer, Prediction, best_of_n
from dynamics.inference.fdp import ForwardDynamics
from dynamics.inference.sampling import SamplingParams
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


def rollouts(
    source_BL: Codes,
    actions: Sequence[Sequence[str]],
    inverse: ActionScorer,
    forward: ForwardDynamics,
    sampling: SamplingParams,
    *,
    verifier: VerifierName,
    seeds: Sequence[int],
    width: int,
) -> list[Rollout]:
    """Roll-outs from B sources side by side, each as alone.

    Args:
        source_BL: codes of the first frames.
        actions: B x S action sentences, the same S for all.
        inverse: the IDM that verifies.
        forward: the FDP that generates.
        sampling: of the candidates of each prefix.
        verifier: a key of `VERIFIERS`.
        seeds: one per source.
        width: of the beam.
    """
    beams = [Beam(one, seed=seed, width=width) for one, seed in zip(source_BL, seeds, strict=True)]
    steps: list[list[RolloutStep]] = [[] for _ in beams]
    for said in zip(*actions, strict=True):
        sizes = [len(beam.frames) for beam in beams]
        found = best_of_n(
            np.concatenate([beam.frames for beam in beams]),
            np.repeat(said, sizes).tolist(),
            inverse,
            forward,
            sampling,
            verifier=verifier,
            seeds=[seed for beam in beams for seed in beam.seeds()],
        )
        ends = np.cumsum(sizes)
        for beam, own, action, end, size in zip(beams, steps, said, ends, sizes, strict=True):
            own.append(beam.extend(action, found[end - size : end]))
    return [collect(one, own) for one, own in zip(source_BL, steps, strict=True)]


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
