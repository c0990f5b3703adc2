"""Verifiers: how good a candidate next frame is, as pure functions of the models' likelihoods."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dynamics.core.registry import described

# B sources, N candidates each, L codes a frame, U distinct candidates.
Codes = NDArray[np.int64]
Scores = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Log-likelihoods of B x N candidates: natural logs, summed over tokens, each <= 0."""

    action: Scores
    """[B, N]: log p(action | source, candidate), from the IDM."""
    action_of_copy: Scores
    """[B]: log p(action | source, source), from the IDM: the score of an unchanged frame."""
    frame: Scores
    """[B, N]: log p(candidate | source, action), from the FDP."""


Verifier = Callable[[Evidence], Scores]
"""Scores [B, N] of the candidates, higher is better."""


# The first line of a verifier's docstring is shown where verifiers are offered and measured: its
# label, a colon, what its score says.


def idm(evidence: Evidence) -> Scores:
    """IDM (the paper's): how well the action can be read back from the change.

    It looks only at what the action touches, so that with a good FDP and a large N it prefers
    frames that are wrong elsewhere.
    """
    return evidence.action


def idm_contrast(evidence: Evidence) -> Scores:
    """IDM contrast: how much better the action can be read back than from an unchanged frame.

    The subtracted term is the same for all candidates of a source: it picks the same frame as
    `idm`, but its zero means "no better than a copy", which makes scores comparable across
    sources and gives a threshold for refusing an answer.
    """
    return evidence.action - evidence.action_of_copy[:, None]


def fdp(evidence: Evidence) -> Scores:
    """FDP likelihood: how likely the frame is, whatever the IDM reads from it."""
    return evidence.frame


def noisy_channel(evidence: Evidence) -> Scores:
    """IDM + FDP: how well the action can be read back, and how likely the frame is.

    The FDP's term covers the cells that the IDM ignores.
    """
    return evidence.action + evidence.frame


VERIFIERS: dict[str, Verifier] = {
    "idm": idm,
    "idm_contrast": idm_contrast,
    "fdp": fdp,
    "noisy_channel": noisy_channel,
}


def weighted(weight: float) -> Verifier:
    """`noisy_channel` with a weight on the IDM's log-likelihood, which has to be fitted."""
    return lambda evidence: weight * evidence.action + evidence.frame


def descriptions() -> dict[str, str]:
    """Name of every verifier to its label and its description, e.g. ``IDM + FDP: how ...``."""
    return described(VERIFIERS)


def label_of(verifier: str) -> str:
    """Label of a verifier in tables and legends, e.g. ``IDM + FDP``."""
    return descriptions()[verifier].partition(":")[0]


def choose(scores_BN: Scores) -> NDArray[np.int64]:
    """Index of the best candidate per source; the first one on ties, a NaN never wins."""
    chosen_B: NDArray[np.int64] = np.nan_to_num(scores_BN, nan=-np.inf).argmax(axis=1)
    return chosen_B
