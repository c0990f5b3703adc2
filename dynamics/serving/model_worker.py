"""The IDM and FDP of one round, for whole batches of requests.

K prefixes a request, N candidates a prefix, L codes a frame.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dynamics.core.config import ModelConfig, VerifierName
from dynamics.core.errors import UserError
from dynamics.inference.best_of_n import ActionScorer, Prediction, choose_best, gather_evidence
from dynamics.inference.decoder import Candidates
from dynamics.inference.fdp import Asked, ForwardDynamics
from dynamics.inference.idm import Caption
from dynamics.inference.sampling import SamplingParams
from dynamics.inference.verifiers import Codes, Evidence
from dynamics.models.image_tokenizer import ImageTokenizer

MIN_ROWS = 8
"""Least sampled rows of a forward. Matrix products of fewer rows take other paths through the CPU's
library and round differently: a request's scores would depend on the rest of its batch."""

_PROBE_ACTION = "left"
_PROBE = SamplingParams(num_samples=2, temperature=1.0)


def for_clients(model: ModelConfig) -> ModelConfig:
    """The model with the engine whose numbers depend on nothing but the request.

    With ``shared_prefix`` scores of a request depend on the others in their last digits; a config
    that names it has it.
    """
    return model.model_copy(update={"decoder": model.decoder or "steady"})


class Inverse(ActionScorer, Protocol):
    """An IDM, in this process or in another one."""

    digest: str

    def label(
        self, source_codes_BL: Codes, target_codes_BL: Codes, *, max_action_tokens: int
    ) -> list[Caption]:
        """Greedy action sentences of frame pairs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceRequest:
    """A best-of-N prediction to be made in a batch. Its callables run in the worker's thread."""

    source: Callable[[], Codes]
    """Returns codes [K, L]."""
    action: str
    seeds: Callable[[], Sequence[int]]
    """Returns K seeds."""
    verifier: VerifierName
    finish: Callable[[Prediction], Any]
    """Converts a prediction of K sources to the result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreItem:
    """Candidates of any origin for the next frame; frames are uint8 [H, W, 3]."""

    source: np.ndarray
    action: str
    candidates: Sequence[np.ndarray]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two frames to label, uint8 [H, W, 3] each."""

    source: np.ndarray
    target: np.ndarray


class ModelWorker:
    """One round's models. Not safe to call from two threads, except where the IDM is elsewhere.

    Args:
        round_id: Number of the round.
        inverse: The round's IDM.
        forward: The round's FDP.
        max_action_tokens: Longest sentence that the IDM writes.
    """

    def __init__(
        self, round_id: int, inverse: Inverse, forward: ForwardDynamics, max_action_tokens: int
    ) -> None:
        self.round_id = round_id
        self.inverse = inverse
        self.forward = forward
        self._max_action_tokens = max_action_tokens

    @property
    def images(self) -> ImageTokenizer:
        """Image tokenizer of the round's base."""
        return self.forward.images

    def check_action(self, action: str) -> None:
        """Refuse a sentence that the model cannot read, before it waits.

        Raises:
            UserError: it has no token, or too many.
        """
        self.forward.tokens.action_ids(action)

    def encode(self, frame_HW3: np.ndarray) -> Codes:
        """Codes [1, L] of a frame; one at a time, so that they depend on nothing else."""
        codes: Codes = self.images.encode(frame_HW3[None])
        return codes

    def decode(self, codes_L: Codes) -> np.ndarray:
        """The frame of codes, uint8 [H, W, 3]; one at a time as well."""
        frame: np.ndarray = self.images.decode(codes_L[None])[0]
        return frame

    def predict(
        self, requests: Sequence[InferenceRequest], sampling: SamplingParams
    ) -> list[Any | Exception]:
        """Best of N for requests that share their sampling; one result or exception each."""
        return list(self.predict_joining(requests, sampling, list))

    def predict_joining(
        self,
        requests: Sequence[InferenceRequest],
        sampling: SamplingParams,
        more: Callable[[], Sequence[InferenceRequest]],
    ) -> Iterator[Any | Exception]:
        """As `predict`, a result as soon as it is there; ``more`` are asked for between steps.

        Results come in the order of the requests, the further ones after the first.
        """
        arrived, drawing = [requests], deque[tuple[Sequence[InferenceRequest], list[int], Asked]]()

        def ask() -> Asked | None:
            new = arrived.pop() if arrived else more()
            if not new:
                return None
            sources = [request.source() for request in new]
            actions = [r.action for r, rows in zip(new, sources, strict=True) for _ in rows]
            seeds = [seed for request in new for seed in request.seeds()]
            asked = Asked(np.concatenate(sources), actions, seeds)
            drawing.append((new, [len(rows) for rows in sources], asked))
            return asked

        for candidates in self._drawn(ask, sampling):
            new, sizes, (source_BL, actions, _) = drawing.popleft()
            evidence = gather_evidence(source_BL, actions, candidates, self.inverse)
            start = 0
            for request, size in zip(new, sizes, strict=True):
                part = slice(start, start + size)
                start += size
                try:
                    yield request.finish(_best_of(part, request.verifier, candidates, evidence))
                except Exception as error:  # one request's failure must not fail the others
                    yield error

    def _drawn(
        self, ask: Callable[[], Asked | None], sampling: SamplingParams
    ) -> Iterator[Candidates]:
        found = self.forward.generate_joining(ask, sampling)
        if found is None:
            return (self._generate(asked, sampling) for asked in iter(ask, None))
        return found

    def label(self, pairs: Sequence[Pair]) -> list[Caption]:
        """Greedy action sentences of the pairs."""
        source_BL, target_BL = (
            _at_least(MIN_ROWS, np.concatenate([self.encode(frame) for frame in frames]))
            for frames in zip(*((pair.source, pair.target) for pair in pairs), strict=True)
        )
        captions = self.inverse.label(
            source_BL, target_BL, max_action_tokens=self._max_action_tokens
        )
        return captions[: len(pairs)]

    def score(self, item: ScoreItem) -> tuple[Evidence, NDArray[np.bool_]]:
        """Evidence of the N candidates of one source, and which of them have its codes, [1, N]."""
        count = len(item.candidates)
        codes = _at_least(MIN_ROWS, np.concatenate([self.encode(one) for one in item.candidates]))
        source = np.repeat(self.encode(item.source), len(codes), axis=0)
        frame = self.forward.frame_logprobs(source, [item.action] * len(codes), codes)
        drawn = Candidates(codes[None, :count], frame[None, :count], frame[None, :count])
        evidence = gather_evidence(source[:1], [item.action], drawn, self.inverse)
        return evidence, (codes == source).all(axis=1)[None, :count]

    def look(self, frame_HW3: np.ndarray) -> np.ndarray:
        """What the image codes keep of a frame, uint8 [H, W, 3]."""
        return self.decode(self.encode(frame_HW3)[0])

    def probe(self) -> None:
        """Draw and score one frame, to find a damaged or diverged adapter.

        Raises:
            UserError: a log-probability is NaN or above 0.
        """
        side = self.images.frame_px
        grey = self.encode(np.full((side, side, 3), 128, dtype=np.uint8))
        candidates = self._generate(Asked(grey, [_PROBE_ACTION], [0]), _PROBE)
        evidence = gather_evidence(grey, [_PROBE_ACTION], candidates, self.inverse)
        numbers = np.concatenate([evidence.frame.ravel(), evidence.action.ravel()])
        if not (np.isfinite(numbers).all() and (numbers <= 0).all()):
            raise UserError("its models give log-probabilities that are none (NaN or above 0)")
        self.decode(candidates.codes[0, 0])

    def _generate(self, asked: Asked, sampling: SamplingParams) -> Candidates:
        """As `ForwardDynamics.generate`, with at least `MIN_ROWS` rows a forward."""
        source_BL, actions, seeds = asked
        missing = max(0, -(-MIN_ROWS // sampling.num_samples) - len(source_BL))
        drawn = self.forward.generate(
            _at_least(missing + len(source_BL), source_BL),
            [*actions, *[actions[-1]] * missing],
            sampling,
            seeds=[*seeds, *[seeds[-1]] * missing],
        )
        return drawn[: len(source_BL)]


def _at_least(count: int, rows_BL: Codes) -> Codes:
    """The rows, the last one repeated until there are ``count``."""
    missing = max(0, count - len(rows_BL))
    return np.concatenate([rows_BL, np.repeat(rows_BL[-1:], missing, axis=0)])


def _best_of(
    part: slice, verifier: VerifierName, candidates: Candidates, evidence: Evidence
) -> Prediction:
    own_evidence = Evidence(
        action=evidence.action[part],
        action_of_copy=evidence.action_of_copy[part],
        frame=evidence.frame[part],
    )
    return choose_best(candidates[part], own_evidence, verifier)
