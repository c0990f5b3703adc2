"""Sessions: the frame, inference requests and messages of one client request."""

from typing import Any

import numpy as np

from dynamics.core.config import VerifierName
from dynamics.core.domain import Domain
from dynamics.inference.best_of_n import Prediction
from dynamics.inference.rollout import Beam, RolloutStep, collect
from dynamics.serving.images import to_base64
from dynamics.serving.model_worker import InferenceRequest, ModelWorker
from dynamics.serving.schemas import (
    PredictReply,
    RolloutEnd,
    RolloutRequest,
    RolloutStart,
    RolloutStepMessage,
    Sampling,
)


def provenance(worker: ModelWorker) -> dict[str, Any]:
    """Fields of `Provenance`."""
    return {
        "round": worker.round_id,
        "idm": worker.inverse.digest,
        "fdp": worker.forward.digest,
    }


class _Session:
    """State of a client request: a frame and one or more actions.

    Args:
        worker: Models of the round that is asked.
        domain: Outcomes of actions, as far as they are known.
        frame: uint8 [H, W, 3], the picture as the model sees it.
        request: How candidates are drawn.
        actions: Sentences, one a step.
        verifier: Name of the verifier that chooses.
    """

    def __init__(
        self,
        worker: ModelWorker,
        domain: Domain,
        frame: np.ndarray,
        request: Sampling,
        actions: list[str],
        verifier: VerifierName,
    ) -> None:
        self._worker = worker
        self._domain = domain
        self._frame = frame
        self._request = request
        self._verifier = verifier
        self._expected = expected_states(domain, frame, actions)
        self._shown: dict[bytes, str] = {}

    def _choice(
        self, prediction: Prediction, row: int, chosen: int, expected: str | None
    ) -> dict[str, Any]:
        """Fields of `Choice`: candidate ``chosen`` of source ``row``."""
        codes_NL = prediction.candidates.codes[row]
        frame = self._worker.decode(codes_NL[chosen])
        image = self._shown[codes_NL[chosen].tobytes()] = to_base64(frame)
        pictures = None
        if self._request.candidates:
            pictures = [self._picture(codes_L) for codes_L in codes_NL]
        return {
            "image": image,
            "chosen": chosen,
            "scores": prediction.scores[row].tolist(),
            "candidates": pictures,
            "matches_ground_truth": self._matches_ground_truth(frame, expected),
        }

    def _picture(self, codes_L: np.ndarray) -> str:
        """Base64 of a frame; those that were chosen are there already."""
        return self._shown.get(codes_L.tobytes()) or to_base64(self._worker.decode(codes_L))

    def _matches_ground_truth(self, frame: np.ndarray, expected: str | None) -> bool | None:
        return None if expected is None else self._domain.states(frame[None])[0] == expected


def expected_states(domain: Domain, frame_HW3: np.ndarray, actions: list[str]) -> list[str | None]:
    """The state after each action; None from the first action on whose outcome is not known.

    All are None when the frame is not recognised.
    """
    state = domain.recognised(frame_HW3)
    states = []
    for sentence in actions:
        state = None if state is None else domain.outcome(sentence, state)
        states.append(state)
    return states


class PredictSession(_Session):
    """One action: `PredictRequest` to `PredictReply`."""

    def request(self, action: str) -> InferenceRequest:
        """The inference request of the only step."""
        return InferenceRequest(
            source=lambda: self._worker.encode(self._frame),
            action=action,
            seeds=lambda: [self._request.seed],
            verifier=self._verifier,
            finish=self._finish,
        )

    def _finish(self, prediction: Prediction) -> PredictReply:
        choice = self._choice(prediction, 0, int(prediction.chosen[0]), self._expected[0])
        return PredictReply(**choice, **provenance(self._worker), source=to_base64(self._frame))


class RolloutSession(_Session):
    """Several actions: `RolloutRequest` to its messages, a step at a time."""

    end: RolloutEnd | None = None
    """Set by the last step."""

    def __init__(
        self,
        worker: ModelWorker,
        domain: Domain,
        frame: np.ndarray,
        request: RolloutRequest,
        verifier: VerifierName,
    ) -> None:
        super().__init__(worker, domain, frame, request, request.actions, verifier)
        self._rollout = request
        self._steps: list[RolloutStep] = []
        self._beam: Beam | None = None

    def start(self) -> RolloutStart:
        """The first message."""
        return RolloutStart(
            **provenance(self._worker),
            source=to_base64(self._frame),
            num_steps=len(self._rollout.actions),
        )

    @property
    def num_sources(self) -> int:
        """Prefixes that the next step draws from."""
        return 1 if self._beam is None else len(self._beam.frames)

    def request(self, action: str) -> InferenceRequest:
        """The inference request of the next step."""
        return InferenceRequest(
            source=lambda: self._started().frames,
            action=action,
            seeds=lambda: self._started().seeds(),
            verifier=self._verifier,
            finish=self._finish,
        )

    def _started(self) -> Beam:
        # In the worker's thread: large image tokenizers take their time.
        if self._beam is None:
            source_L = self._worker.encode(self._frame)[0]
            self._source_L = source_L
            self._beam = Beam(source_L, seed=self._rollout.seed, width=self._rollout.beam)
        return self._beam

    def _finish(self, prediction: Prediction) -> RolloutStepMessage:
        index = len(self._steps)
        step = self._started().extend(self._rollout.actions[index], prediction)
        self._steps.append(step)
        parent, chosen = int(step.parents[0]), int(step.chosen[0])
        choice = self._choice(prediction, parent, chosen, self._expected[index])
        if len(self._steps) == len(self._rollout.actions):
            self.end = self._ended()
        return RolloutStepMessage(
            **choice,
            index=index,
            action=step.action,
            total=float(step.totals[0]),
            num_prefixes=len(step.frames),
        )

    def _ended(self) -> RolloutEnd:
        codes = collect(self._source_L, self._steps).frames[1:]
        last = self._worker.decode(codes[-1])
        return RolloutEnd(
            frames=[self._picture(codes_L) for codes_L in codes],
            total=float(self._steps[-1].totals[0]),
            matches_ground_truth=self._matches_ground_truth(last, self._expected[-1]),
        )
