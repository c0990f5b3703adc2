"""Several actions in a row: each step's best frame is the next step's source."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dynamics.config import VerifierName
from dynamics.generation.fdp import ForwardDynamics
from dynamics.generation.verify import Codes, Prediction, best_of_n
from dynamics.labelling.idm import InverseDynamics
from dynamics.seeds import derive_seed


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """An imagined episode of S actions."""

    frames: Codes
    """[S + 1, L]: the given frame, then one a step."""
    steps: tuple[Prediction, ...]
    """One per action, each with its candidates and scores."""


def rollout(
    source_L: Codes,
    actions: Sequence[str],
    inverse: InverseDynamics,
    forward: ForwardDynamics,
    *,
    verifier: VerifierName,
    num_samples: int,
    temperature: float,
    seed: int,
) -> Rollout:
    """Imagine what ``actions`` do to the frame ``source_L`` [L], best of N at every step.

    Errors add up: nothing corrects a wrong frame later. The first S steps of a longer rollout
    with the same seed are the same frames.
    """
    frame_L = source_L
    steps: list[Prediction] = []
    for position, action in enumerate(actions):
        step = best_of_n(
            frame_L[None],
            [action],
            inverse,
            forward,
            verifier=verifier,
            num_samples=num_samples,
            temperature=temperature,
            seeds=[derive_seed(seed, position)],
        )
        frame_L = step.best[0]
        steps.append(step)
    return Rollout(
        frames=np.stack([source_L, *(step.best[0] for step in steps)]), steps=tuple(steps)
    )
