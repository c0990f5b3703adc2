"""Best of N: sample candidate next frames, choose the one a verifier likes best.

The paper samples N frames from the FDP and chooses the one under which the IDM finds the requested
action most likely (arXiv:2506.06006, section 3.4: no training, N in 1, 2, 4, 8). A verifier here
is a pure function of `Evidence`, so that several can be compared on one set of model calls.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dynamics.core.config import VerifierName
from dynamics.inference.decoder import Candidates
from dynamics.inference.fdp import ForwardDynamics
from dynamics.inference.sampling import SamplingParams
from dynamics.inference.verifiers import VERIFIERS, Codes, Evidence, Scores, choose


class ActionScorer(Protocol):
    """The part of an IDM that verification calls, in this process or in another."""

    def action_logprobs(
        self, source_codes_BL: Codes, target_codes_BL: Codes, actions: Sequence[str], /
    ) -> Scores:
        """Sum of log p over the action's tokens and the end token, float64 [B]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Chosen frames, with the candidates and their scores."""

    best: Codes
    """[B, L]: codes of the best candidates."""
    chosen: NDArray[np.int64]
    """[B]: their index, 0..N-1."""
    scores: Scores
    """[B, N]: the verifier's, higher is better, in nats."""
    candidates: Candidates

    def __getitem__(self, rows: slice) -> "Prediction":
        """Those of some of the sources."""
        return Prediction(
            best=self.best[rows],
            chosen=self.chosen[rows],
            scores=self.scores[rows],
            candidates=self.candidates[rows],
        )


def gather_evidence(
    source_BL: Codes, actions: Sequence[str], candidates: Candidates, inverse: ActionScorer
) -> Evidence:
    """Score B x N candidates with the IDM, each distinct frame of a source once.

    A confident FDP draws the same frame again and again (most of N at T = 1), and the source
    itself is often among them, so this saves most of the verifier's time.
    """
    num_sources, num_samples, length = candidates.codes.shape
    framed = np.concatenate([candidates.codes, source_BL[:, None]], axis=1)
    row_of = np.repeat(np.arange(num_sources), num_samples + 1)[:, None]
    keyed = np.concatenate([row_of, framed.reshape(-1, length)], axis=1)
    unique_U, inverse_index = np.unique(keyed, axis=0, return_inverse=True)
    rows_U, targets_UL = unique_U[:, 0], unique_U[:, 1:]
    logprobs_U = inverse.action_logprobs(
        source_BL[rows_U], targets_UL, [actions[row] for row in rows_U]
    )
    scores = logprobs_U[inverse_index.reshape(-1)].reshape(num_sources, num_samples + 1)
    return Evidence(action=scores[:, :-1], action_of_copy=scores[:, -1], frame=candidates.logprobs)


def choose_best(candidates: Candidates, evidence: Evidence, verifier: VerifierName) -> Prediction:
    """The verifier's favourites among the candidates."""
    scores_BN = VERIFIERS[verifier](evidence)
    chosen_B = choose(scores_BN)
    best_BL = candidates.codes[np.arange(len(chosen_B)), chosen_B]
    return Prediction(best=best_BL, chosen=chosen_B, scores=scores_BN, candidates=candidates)


def best_of_n(
    source_BL: Codes,
    actions: Sequence[str],
    inverse: ActionScorer,
    forward: ForwardDynamics,
    sampling: SamplingParams,
    *,
    verifier: VerifierName,
    seeds: Sequence[int],
) -> Prediction:
    """Sample ``sampling.num_samples`` next frames per source, choose the verifier's favourite.

    Args:
        source_BL: codes of the current frames.
        actions: B action sentences.
        inverse: the IDM that verifies.
        forward: the FDP that generates.
        sampling: with one sample the result is plain sampling.
        verifier: a key of `VERIFIERS`.
        seeds: one per source; a source's candidates depend on nothing else.
    """
    candidates = forward.generate(source_BL, actions, sampling, seeds=seeds)
    evidence = gather_evidence(source_BL, actions, candidates, inverse)
    return choose_best(candidates, evidence, verifier)
