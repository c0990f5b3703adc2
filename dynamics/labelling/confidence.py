"""Confidence scores of a label: higher means that the IDM is surer of it.

The paper ranks labels by the IDM's likelihood of its own caption (arXiv 2506.06006, section 3.2)
without saying sum or mean; its successor's code takes the mean. Both are here: the mean is blind
to length, the sum is the likelihood proper and prefers short captions.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Literal

import numpy as np
import pyarrow as pa

from dynamics.core.config import ScoreName
from dynamics.core.domain import normalised_text
from dynamics.core.records import LABEL_SCHEMA, ScoreScale


@dataclass(slots=True, kw_only=True)
class Evidence:
    """Measurements of one label. Not frozen: one is made for every label, at half the time."""

    action: str
    """The greedy caption."""
    token_logprobs: Sequence[float]
    """Natural log, one per generated token, end included; each <= 0."""
    samples: Sequence[str] = ()
    """Captions drawn from the IDM for the same pair; empty when none were drawn."""
    canonical: Callable[[str], str] = normalised_text
    """Maps sentences of equal meaning to one text, sentences without meaning to ""."""
    fdp_loglik: float | None = None
    """log p(target codes | source codes, action) by the FDP; None when not measured."""


@dataclass(frozen=True, slots=True)
class Score:
    """A confidence score of labels."""

    measure: Callable[[Evidence], float]
    needs: Literal["samples", "fdp_loglik"] | None = None
    """Evidence beyond the token log-probs, which costs model time."""
    scale: ScoreScale | None = None
    """Reading as a probability of being correct; None = it only ranks."""

    def __call__(self, evidence: Evidence) -> float:
        """The score; NaN without tokens, since an empty caption must not win."""
        return self.measure(evidence) if len(evidence.token_logprobs) else float("nan")


def mean_logprob(evidence: Evidence) -> float:
    """Mean natural-log likelihood per token."""
    return sum_logprob(evidence) / len(evidence.token_logprobs)


def sum_logprob(evidence: Evidence) -> float:
    """Natural-log likelihood of the whole caption."""
    return math.fsum(evidence.token_logprobs)


def min_logprob(evidence: Evidence) -> float:
    """Natural-log likelihood of the least likely token: one guessed word spoils a caption."""
    # Among NaNs the smallest would depend on their places.
    total = sum(evidence.token_logprobs)
    return total if math.isnan(total) else min(evidence.token_logprobs)


def agreement(evidence: Evidence) -> float:
    """Share of the samples that mean the same as the greedy caption, ties broken by likelihood.

    The tie-break exp(mean log-prob) / (2 * samples) lies below the step between two shares, so it
    never overrules a vote, and at or above zero, so "all agree" is always at least 1.
    """
    if not evidence.samples:
        raise ValueError("agreement needs samples")
    meaning = evidence.canonical(evidence.action)
    votes = sum(bool(meaning) and evidence.canonical(text) == meaning for text in evidence.samples)
    return (votes + math.exp(mean_logprob(evidence)) / 2) / len(evidence.samples)


def fdp_likelihood(evidence: Evidence) -> float:
    """Natural-log likelihood of the target frame by the FDP, given source and caption."""
    if evidence.fdp_loglik is None:
        raise ValueError("fdp_likelihood needs fdp_loglik")
    return evidence.fdp_loglik


def noisy_channel(evidence: Evidence) -> float:
    """IDM and FDP log-likelihood added, as in the verifier of that name.

    log p(action | frames) + log p(frame | action) also chooses among candidate sentences.
    """
    return sum_logprob(evidence) + fdp_likelihood(evidence)


SCORES: dict[ScoreName, Score] = {
    "mean_logprob": Score(mean_logprob, scale="log_probability"),
    "sum_logprob": Score(sum_logprob, scale="log_probability"),
    "min_logprob": Score(min_logprob, scale="log_probability"),
    "agreement": Score(agreement, needs="samples", scale="probability"),
    "fdp_likelihood": Score(fdp_likelihood, needs="fdp_loglik"),
    "noisy_channel": Score(noisy_channel, needs="fdp_loglik"),
}


def measured_scores(evidence: Sequence[Evidence]) -> pa.MapArray:
    """The ``scores`` of label rows: those whose evidence was measured, names sorted."""
    names = sorted(SCORES)
    measured_BS = np.ones((len(evidence), len(names)), dtype=bool)
    values_BS = np.zeros((len(evidence), len(names)), dtype=np.float32)
    for place, name in enumerate(names):
        score = SCORES[name]
        if score.needs == "samples":
            measured_BS[:, place] = [bool(one.samples) for one in evidence]
        elif score.needs == "fdp_loglik":
            measured_BS[:, place] = [one.fdp_loglik is not None for one in evidence]
        values_BS[measured_BS[:, place], place] = [
            score(one) for one in compress(evidence, measured_BS[:, place])
        ]
    offsets = np.concatenate([[0], np.cumsum(measured_BS.sum(1))])
    keys = pa.array(names, pa.string()).take(pa.array(np.nonzero(measured_BS)[1]))
    return pa.MapArray.from_arrays(
        pa.array(offsets, pa.int32()),
        keys,
        pa.array(values_BS[measured_BS]),
        type=LABEL_SCHEMA.field("scores").type,
    )
