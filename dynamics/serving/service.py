"""The service behind the HTTP layer: messages in, messages out, one run's rounds in between.

Everything that a client can do wrong comes back as an `Answer` with a status and one line; what is
raised from here is a fault of ours.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from pydantic import ValidationError

from dynamics.config import LoopConfig
from dynamics.errors import UserError
from dynamics.generation.rollout import Beam, RolloutStep, collect
from dynamics.generation.verify import VERIFIERS, Prediction
from dynamics.labelling.idm import Caption
from dynamics.serving.api import (
    ErrorReply,
    LabelReply,
    LabelRequest,
    Message,
    ModelsReply,
    PredictReply,
    PredictRequest,
    RolloutEnd,
    RolloutRequest,
    RolloutStart,
    RolloutStepMessage,
    RoundInfo,
    Sampling,
    ScenesReply,
)
from dynamics.serving.batching import Batcher, ExpiredError
from dynamics.serving.engine import Draw, Pair, RoundEngine
from dynamics.serving.pictures import TooLargeError, encode_png, from_base64, open_picture
from dynamics.serving.referee import Referee, referee_of
from dynamics.serving.rounds import NotReadyError, Shelf
from dynamics.serving.scenes import example_scenes

_log = logging.getLogger(__name__)
_SMALL_PICTURE_BYTES = 2**16
"""Base64 of at most so many bytes is decoded at once: a thread would cost more than it frees."""
Request = TypeVar("Request", bound=Message)


class Answer(NamedTuple):
    """An HTTP status and a JSON body, ready to be sent."""

    status: int
    body: str


class Event(NamedTuple):
    """One event of a roll-out; ``status`` counts while nothing has been sent yet."""

    name: str
    body: str
    status: int = 200


@dataclass(slots=True, kw_only=True)
class ServiceStatus:
    """How the service is, for readiness and metrics."""

    promoted: int | None
    refused: str | None
    """Why the round that was to be promoted last was not."""
    waiting: int
    batch_sizes: dict[int, int]


class Backend(Protocol):
    """What the HTTP layer needs; bodies are JSON of the messages in `dynamics.serving.api`."""

    async def predict(self, body: bytes, timeout_s: float) -> Answer:
        """The next frame."""

    def rollout(self, body: bytes, timeout_s: float) -> AsyncGenerator[Event]:
        """Events as they are made."""

    async def label(self, body: bytes, timeout_s: float) -> Answer:
        """The action between two frames."""

    async def models(self) -> Answer:
        """Rounds and limits."""

    async def scenes(self) -> Answer:
        """Scenes at hand."""

    async def status(self) -> ServiceStatus:
        """Readiness and figures."""


class RoundService:
    """`Backend` in this process.

    Args:
        cfg: The run's config, with the serving section in force.
        shelf: The run's rounds.
        num_threads: Batches at a time; more than one only where the IDM is in another process.
    """

    def __init__(self, cfg: LoopConfig, shelf: Shelf[RoundEngine], num_threads: int = 1) -> None:
        self._cfg = cfg
        self._shelf = shelf
        self._batcher = Batcher(self._run, max_rows=cfg.serve.batch_rows, num_threads=num_threads)
        self._loading = asyncio.Lock()
        self._refused: str | None = None
        self._referee: Referee | None = None
        self._scenes: Answer | None = None

    async def promote(self, round_id: int) -> bool:
        """Load a round, try it, and let it answer from now on; requests go on meanwhile.

        False when it is no good: what answered before goes on, or, when nothing did, the newest
        older round that is good. `status` says why.
        """
        self._refused = None
        candidates = [round_id]
        if self._shelf.promoted is None:
            candidates += [
                number for number in sorted(self._shelf.known(), reverse=True) if number < round_id
            ]
        for number in candidates:
            error = await self._try(number)
            if error is None:
                break
            still = self._shelf.promoted
            line = f"round {number} is refused: {error}"
            line += f"; round {still} goes on answering" if still is not None else ""
            _log.error(line)
            self._refused = self._refused or line
        return self._refused is None

    async def predict(self, body: bytes, timeout_s: float) -> Answer:
        """`PredictRequest` to `PredictReply`."""

        async def answer() -> Message:
            request = _parse(PredictRequest, body)
            engine = await self._engine(request.round)
            engine.check_action(request.action)
            frame = await self._frame(engine, request.image)
            scenes = self._referee.follow(frame, [request.action]) if self._referee else [None]

            def finish(prediction: Prediction) -> PredictReply:
                choice = self._choice(engine, request, prediction, 0, scenes[0])
                return PredictReply(**choice, **_provenance(engine), source=encode_png(frame))

            draw = Draw(
                source=lambda: engine.encode(frame),
                action=request.action,
                seeds=lambda: [request.seed],
                verifier=request.verifier or self._cfg.serve.verifier,
                finish=finish,
            )
            reply: PredictReply = await self._draw(engine, request, draw, 1, deadline)
            return reply

        deadline = time.monotonic() + timeout_s
        return await _answered(answer)

    async def label(self, body: bytes, timeout_s: float) -> Answer:
        """`LabelRequest` to `LabelReply`."""

        async def answer() -> Message:
            request = _parse(LabelRequest, body)
            engine = await self._engine(request.round)
            pair = Pair(
                await self._frame(engine, request.before), await self._frame(engine, request.after)
            )
            caption: Caption = await self._batcher.submit(
                (engine,), pair, rows=1, deadline=deadline
            )
            return LabelReply(
                action=caption.action,
                logprob=float(sum(caption.token_logprobs)),
                token_logprobs=list(caption.token_logprobs),
                round=engine.round_id,
                idm=engine.inverse.digest,
            )

        deadline = time.monotonic() + timeout_s
        return await _answered(answer)

    async def rollout(self, body: bytes, timeout_s: float) -> AsyncGenerator[Event]:
        """`RolloutRequest` to its events; a fault is the last event, named ``error``."""
        deadline = time.monotonic() + timeout_s
        try:
            request = _parse(RolloutRequest, body)
            engine = await self._engine(request.round)
            for action in request.actions:
                engine.check_action(action)
            frame = await self._frame(engine, request.image)
            start = RolloutStart(
                **_provenance(engine),
                source=encode_png(frame),
                num_steps=len(request.actions),
            )
            yield Event("start", start.model_dump_json())
            course = _Course(self, engine, request, frame)
            for action in request.actions:
                rows = len(course.beam.frames) if course.beam else 1
                step = await self._draw(engine, request, course.draw(action), rows, deadline)
                yield Event("step", step.model_dump_json())
            assert course.end is not None  # the last step has set it
            yield Event("end", course.end.model_dump_json())
        except Exception as error:
            refusal = refused(error)
            yield Event("error", refusal.body, refusal.status)

    async def models(self) -> Answer:
        """`ModelsReply`."""

        async def answer() -> Message:
            engine = await self._engine(None)
            reports = await asyncio.to_thread(self._shelf.known)
            rounds = [
                RoundInfo(
                    round=number,
                    idm=report.models["idm_digest"],
                    fdp=report.models["fdp_digest"],
                    promoted=number == self._shelf.promoted,
                )
                for number, report in reports.items()
            ]
            return ModelsReply(
                name=self._cfg.name,
                family=self._cfg.model.family,
                frame_px=engine.images.frame_px,
                rounds=rounds,
                verifiers=list(VERIFIERS),
                verifier=self._cfg.serve.verifier,
                num_samples=self._cfg.serve.num_samples,
            )

        return await _answered(answer)

    async def scenes(self) -> Answer:
        """`ScenesReply`: made once, empty where the run is not the tabletop's."""

        async def answer() -> Message:
            await self._engine(None)
            folder = self._shelf.folder
            known = self._referee is not None
            scenes = await asyncio.to_thread(example_scenes, self._cfg, folder) if known else []
            return ScenesReply(scenes=scenes)

        if self._scenes is None:
            made = await _answered(answer)
            if made.status != 200:
                return made
            self._scenes = made
        return self._scenes

    async def status(self) -> ServiceStatus:
        """Readiness and figures."""
        return ServiceStatus(
            promoted=self._shelf.promoted,
            refused=self._refused,
            waiting=self._batcher.depth,
            batch_sizes=dict(self._batcher.sizes),
        )

    # Details.

    async def _try(self, round_id: int) -> str | None:
        """Load, probe and promote; why not, if not."""
        try:
            async with self._loading:
                engine = await asyncio.to_thread(self._shelf.get, round_id)
                await asyncio.to_thread(engine.probe)
                self._referee = referee_of(self._cfg, engine.images.frame_px)
                self._shelf.promote(round_id)
        except Exception as error:
            self._shelf.drop(round_id)
            if not isinstance(error, UserError):
                _log.exception("round %d cannot be loaded", round_id)
            return one_line(error)
        return None

    async def _engine(self, round_id: int | None) -> RoundEngine:
        found = self._shelf.at_hand(round_id)
        if found is not None:
            return found
        async with self._loading:
            return await asyncio.to_thread(self._shelf.get, round_id)

    async def _frame(self, engine: RoundEngine, image: str) -> np.ndarray:
        """uint8 [H, W, 3] as the model wants it."""

        def fit() -> np.ndarray:
            return engine.images.fit(open_picture(from_base64(image)))

        return fit() if len(image) <= _SMALL_PICTURE_BYTES else await asyncio.to_thread(fit)

    def num_samples(self, request: Sampling) -> int:
        """N of a request."""
        return request.n or self._cfg.serve.num_samples

    async def _draw(
        self, engine: RoundEngine, request: Sampling, draw: Draw, sources: int, deadline: float
    ) -> Any:
        num_samples = self.num_samples(request)
        return await self._batcher.submit(
            (engine, num_samples, request.temperature),
            draw,
            rows=sources * num_samples,
            deadline=deadline,
        )

    @staticmethod
    def _run(key: tuple[Any, ...], items: Any) -> list[Any]:
        """A batch, in the batcher's thread."""
        if len(key) == 1:
            (engine,) = key
            captions: list[Any] = engine.label(items)
            return captions
        engine, num_samples, temperature = key
        drawn: list[Any] = engine.draw(items, num_samples=num_samples, temperature=temperature)
        return drawn

    def _choice(
        self,
        engine: RoundEngine,
        request: Sampling,
        prediction: Prediction,
        row: int,
        expected: Any,
        chosen: int | None = None,
    ) -> dict[str, Any]:
        """Fields of `Choice`: candidate ``chosen`` (none = the favourite) of source ``row``."""
        codes_NL = prediction.candidates.codes[row]
        chosen = int(prediction.chosen[row]) if chosen is None else chosen
        frame = engine.decode(codes_NL[chosen])
        pictures = None
        if request.candidates:
            pictures = [encode_png(engine.decode(codes_L)) for codes_L in codes_NL]
        return {
            "image": encode_png(frame),
            "chosen": chosen,
            "scores": prediction.scores[row].tolist(),
            "candidates": pictures,
            "agrees": self._referee.agrees(frame, expected) if self._referee else None,
        }


class _Course:
    """A roll-out on its way: what `Draw` asks of it, step after step."""

    def __init__(
        self, service: RoundService, engine: RoundEngine, request: RolloutRequest, frame: np.ndarray
    ) -> None:
        self._service = service
        self._engine = engine
        self._request = request
        self._frame = frame
        referee = service._referee
        self._expected = referee.follow(frame, request.actions) if referee else None
        self._steps: list[RolloutStep] = []
        self.beam: Beam | None = None
        self.end: RolloutEnd | None = None
        """Set by the last step."""

    def draw(self, action: str) -> Draw:
        """The next step."""
        return Draw(
            source=self._sources,
            action=action,
            seeds=lambda: self._started().seeds(),
            verifier=self._request.verifier or self._service._cfg.serve.verifier,
            finish=self._finish,
        )

    def _started(self) -> Beam:
        if self.beam is None:
            source_L = self._engine.encode(self._frame)[0]
            self.beam = Beam(source_L, seed=self._request.seed, width=self._request.beam)
        return self.beam

    def _sources(self) -> np.ndarray:
        return self._started().frames

    def _finish(self, prediction: Prediction) -> RolloutStepMessage:
        index = len(self._steps)
        expected = self._expected[index] if self._expected else None
        step = self._started().extend(self._request.actions[index], prediction)
        self._steps.append(step)
        choice = self._service._choice(
            self._engine,
            self._request,
            prediction,
            int(step.parents[0]),
            expected,
            int(step.chosen[0]),
        )
        if len(self._steps) == len(self._request.actions):
            self._end(expected)
        return RolloutStepMessage(
            **choice,
            index=index,
            action=step.action,
            total=float(step.totals[0]),
            num_prefixes=len(step.frames),
        )

    def _end(self, expected: Any) -> None:
        frames = collect(self._engine.encode(self._frame)[0], self._steps).frames[1:]
        pictures = [self._engine.decode(codes_L) for codes_L in frames]
        referee = self._service._referee
        self.end = RolloutEnd(
            frames=[encode_png(picture) for picture in pictures],
            total=float(self._steps[-1].totals[0]),
            agrees=referee.agrees(pictures[-1], expected) if referee else None,
        )


def _provenance(engine: RoundEngine) -> dict[str, Any]:
    return {
        "round": engine.round_id,
        "idm": engine.inverse.digest,
        "fdp": engine.forward.digest,
    }


def _parse(kind: type[Request], body: bytes) -> Request:
    return kind.model_validate_json(body)


async def _answered(make: Callable[[], Awaitable[Message]]) -> Answer:
    try:
        message = await make()
    except Exception as error:
        return refused(error)
    return Answer(200, message.model_dump_json())


def refused(error: Exception) -> Answer:
    """What a client is told; raised again when it is nobody's fault but ours."""
    if isinstance(error, ValidationError):
        return refusal(422, explain(error))
    if isinstance(error, ExpiredError):
        return refusal(503, "no answer within the time limit; ask again later, or for less")
    if isinstance(error, NotReadyError):
        return refusal(503, one_line(error))
    if isinstance(error, TooLargeError):
        return refusal(413, one_line(error))
    if isinstance(error, UserError):
        return refusal(422, one_line(error))
    raise error


def refusal(status: int, detail: str) -> Answer:
    """An answer that says no."""
    return Answer(status, ErrorReply(detail=detail).model_dump_json())


def explain(error: ValidationError) -> str:
    """All problems in one line; what was sent is not repeated."""
    problems = []
    for problem in error.errors(include_input=False, include_url=False, include_context=False):
        place = ".".join(str(part) for part in problem["loc"])
        problems.append(f"{place}: {problem['msg']}" if place else problem["msg"])
    return one_line("; ".join(problems))


def one_line(error: Exception | str) -> str:
    """Without line ends and other control characters, at most 500 characters."""
    text = " ".join(str(error).split())
    return "".join(letter for letter in text if letter.isprintable())[:500] or "unknown error"
