"""The service behind the HTTP layer: messages in, messages out, one run's rounds in between.

Everything that a client can do wrong comes back as an `Answer` with a status and one line; what is
raised from here is a fault of ours.
"""

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from dynamics.core.config import LoopConfig, VerifierName
from dynamics.core.domain import load_domain
from dynamics.core.errors import UserError
from dynamics.inference.idm import Caption
from dynamics.inference.sampling import SamplingParams
from dynamics.inference.verifiers import VERIFIERS
from dynamics.serving.backend import ServiceStatus
from dynamics.serving.batching import Batcher
from dynamics.serving.http.responses import Answer, Event, one_line, parse, refused
from dynamics.serving.images import to_base64, to_frame
from dynamics.serving.model_registry import Shelf
from dynamics.serving.model_worker import Draw, Pair, RoundEngine
from dynamics.serving.schemas import (
    LabelReply,
    LabelRequest,
    Message,
    ModelsReply,
    PredictReply,
    PredictRequest,
    RolloutRequest,
    RoundInfo,
    Sampling,
    Scene,
    ScenesReply,
)
from dynamics.serving.sessions import RolloutCourse, SingleCourse

_log = logging.getLogger(__name__)


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
        self._domain = load_domain(cfg)
        self._scenes: Answer | None = None

    async def promote(self, round_id: int) -> bool:
        """Load a round, try it, and let it answer from now on; requests go on meanwhile.

        False when it is no good: what answered before goes on, or, when nothing did, the newest
        older round that is good. `status` says why.
        """
        self._refused = None
        candidates = [round_id]
        if self._shelf.promoted is None:
            known = await asyncio.to_thread(self._shelf.known)
            candidates += [number for number in sorted(known, reverse=True) if number < round_id]
        for number in candidates:
            error = await self.prepare(number)
            if error is None:
                self._shelf.promote(number)
                break
            _log.error("round %d is refused: %s", number, error)
            self._refused = self._refused or f"round {number} is refused: {error}"
        return self._refused is None

    async def prepare(self, round_id: int) -> str | None:
        """Load a round and try it, beside the one that answers; what is wrong with it, if it is."""
        try:
            async with self._loading:
                engine = await asyncio.to_thread(self._shelf.get, round_id)
                # In the batches' thread: the round may be the one that answers already.
                await self._batcher.submit(("probe", engine), None, rows=1, deadline=math.inf)
        except Exception as error:
            self._shelf.drop(round_id)
            if not isinstance(error, UserError):
                _log.exception("round %d cannot be loaded", round_id)
            return one_line(error)
        return None

    async def predict(self, body: bytes, timeout_s: float) -> Answer:
        """`PredictRequest` to `PredictReply`."""

        async def answer() -> Message:
            request = parse(PredictRequest, body)
            engine = await self._engine(request.round)
            engine.check_action(request.action)
            frame = await to_frame(request.image, engine.images)
            course = SingleCourse(
                engine, self._domain, frame, request, [request.action], self._verifier(request)
            )
            draw = course.draw(request)
            reply: PredictReply = await self._draw(engine, request, draw, 1, deadline)
            return reply

        deadline = time.monotonic() + timeout_s
        return await _answered(answer)

    async def label(self, body: bytes, timeout_s: float) -> Answer:
        """`LabelRequest` to `LabelReply`."""

        async def answer() -> Message:
            request = parse(LabelRequest, body)
            engine = await self._engine(request.round)
            pair = Pair(
                await to_frame(request.before, engine.images),
                await to_frame(request.after, engine.images),
            )
            caption: Caption = await self._batcher.submit(
                ("label", engine), pair, rows=1, deadline=deadline
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
            request = parse(RolloutRequest, body)
            engine = await self._engine(request.round)
            for action in request.actions:
                engine.check_action(action)
            frame = await to_frame(request.image, engine.images)
            course = RolloutCourse(engine, self._domain, frame, request, self._verifier(request))
            yield Event("start", course.start().model_dump_json())
            for action in request.actions:
                draw = course.draw(action)
                step = await self._draw(engine, request, draw, course.num_sources, deadline)
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
        """`ScenesReply`: made once, empty where the domain has no examples."""

        async def answer() -> Message:
            await self._engine(None)
            found = await asyncio.to_thread(self._domain.examples, self._shelf.folder.data)
            scenes = [
                Scene(name=one.name, image=to_base64(one.frame), actions=one.actions)
                for one in found
            ]
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
            batch_seconds=self._batcher.seconds,
        )

    # Details.

    async def _engine(self, round_id: int | None) -> RoundEngine:
        found = self._shelf.at_hand(round_id)
        if found is not None:
            return found
        async with self._loading:
            return await asyncio.to_thread(self._shelf.get, round_id)

    def _verifier(self, request: Sampling) -> VerifierName:
        return request.verifier or self._cfg.serve.verifier

    async def _draw(
        self, engine: RoundEngine, request: Sampling, draw: Draw, sources: int, deadline: float
    ) -> Any:
        num_samples = request.n or self._cfg.serve.num_samples
        sampling = SamplingParams(num_samples=num_samples, temperature=request.temperature)
        return await self._batcher.submit(
            ("draw", engine, sampling), draw, rows=sources * num_samples, deadline=deadline
        )

    @staticmethod
    def _run(key: tuple[Any, ...], items: Any) -> list[Any]:
        """A batch, in the batcher's thread."""
        task, engine, *sampling = key
        if task == "label":
            captions: list[Any] = engine.label(items)
            return captions
        if task == "probe":
            engine.probe()
            return [None] * len(items)
        drawn: list[Any] = engine.draw(items, *sampling)
        return drawn


async def _answered(make: Callable[[], Awaitable[Message]]) -> Answer:
    try:
        message = await make()
    except Exception as error:
        return refused(error)
    return Answer(200, message.model_dump_json())
