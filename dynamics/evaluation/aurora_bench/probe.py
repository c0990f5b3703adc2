"""The preference probe: does a model find the reference likelier than a wrong alternative?

Section 2 of arXiv:2506.06006: four rule-made negatives per item. A share of one half is chance; a
model that cannot tell the reference from the unchanged source (``copy``) has no notion of change.

B items, L codes a frame.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from dynamics.inference.fdp import ForwardDynamics
from dynamics.inference.idm import InverseDynamics

Negative = Literal["random_action", "random_observation", "inverse", "copy"]
NEGATIVES: tuple[Negative, ...] = get_args(Negative)
Preferences = dict[Negative, NDArray[np.float64]]

_TIE = 1e-6
"""Nats: log-likelihoods this close are equal but for rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeItems:
    """B items with the action and the target of another item each."""

    source: NDArray[np.int64]
    """[B, L]."""
    target: NDArray[np.int64]
    """[B, L]."""
    actions: list[str]
    other_target: NDArray[np.int64]
    """[B, L]."""
    other_actions: list[str]


def fdp_preferences(items: ProbeItems, fdp: ForwardDynamics) -> Preferences:
    """Per negative [B]: 1 reference preferred, 0 not, 0.5 a tie (of log-likelihoods of frames)."""
    s, t, a = items.source, items.target, items.actions
    rows = (
        (s, a, t),
        (s, items.other_actions, t),
        (s, a, items.other_target),
        (t, a, s),
        (s, a, s),
    )
    logprobs = fdp.frame_logprobs(
        np.concatenate([row[0] for row in rows]),
        [action for row in rows for action in row[1]],
        np.concatenate([row[2] for row in rows]),
    )
    return _compare(logprobs.reshape(len(rows), -1))


def idm_preferences(items: ProbeItems, idm: InverseDynamics, fdp: ForwardDynamics) -> Preferences:
    """Per negative [B], as `fdp_preferences`, of the mean log-likelihood per action token.

    The mean matters only where two sentences are compared: the sum would prefer the shorter one.
    ``fdp`` lends its tokenizer.
    """
    s, t, a = items.source, items.target, items.actions
    rows = (
        (s, t, a),
        (s, t, items.other_actions),
        (s, items.other_target, a),
        (t, s, a),
        (s, s, a),
    )
    actions = [action for row in rows for action in row[2]]
    logprobs = idm.action_logprobs(
        np.concatenate([row[0] for row in rows]), np.concatenate([row[1] for row in rows]), actions
    )
    tokens = fdp.tokens
    lengths = np.array([len(tokens.text_ids(action)) + 1 for action in actions])
    return _compare((logprobs / lengths).reshape(len(rows), -1))


def _compare(logprobs_5B: NDArray[np.float64]) -> Preferences:
    reference_B, negatives_4B = logprobs_5B[0], logprobs_5B[1:]
    margins_4B = reference_B - negatives_4B
    preferred_4B = np.where(np.abs(margins_4B) < _TIE, 0.5, (margins_4B > 0).astype(np.float64))
    return dict(zip(NEGATIVES, preferred_4B, strict=True))
