"""The service behind the HTTP layer: messages in, messages out, one run's rounds in between.

Every mistake of a client becomes a `ServiceResponse` with a status and one line; an exception that
is raised from here is a fault of the service.
"""

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamics.core.config import LoopConfig, VerifierName
from dynamics.core.domain import load_domain
from dynamics.core.errors import UserError
from dynamics.inference.idm import Caption
from dynamics.inference.sampling import SamplingParams
from dynamics.inference.verifiers import VERIFIERS, Evidence, choose, descriptions
from dynamics.serving.backend import ServiceStatus
from dynamics.serving.batching import Batcher
from dynamics.serving.examples import contrast, example_scenes, heldout_frames
from dynamics.serving.http.responses import Event, ServiceResponse, one_line, parse, to_response
from dynamics.serving.images import to_base64, to_frame
from dynamics.serving.model_registry import ModelRegistry
from dynamics.serving.model_worker import InferenceRequest, ModelWorker, Pair, ScoreItem
from dynamics.serving.schemas import (
    Contrast,
    LabelReply,
    LabelRequest,
    LookReply,
    LookRequest,
    Message,
    ModelsReply,
    PredictReply,
    PredictRequest,
    RolloutRequest,
    RoundInfo,
    Sampling,
    Scene,
    ScenesReply,
    ScoreReply,
    ScoreRequest,
    WordsReply,
    WordsRequest,
)
from dynamics.serving.sessions import PredictSession, RolloutSession

_log = logging.getLogger(__name__)


class RoundService:
    """`Backend` in this process.

    Args:
        cfg: The run's config, with the serving section in force.
        registry: The run's rounds.
        num_threads: Batches at a time; more than one only where the IDM is in another process.
    """

    def __init__(
        self, cfg: LoopConfig, registry: ModelRegistry[ModelWorker], num_threads: int = 1
    ) -> None:
        self._cfg = cfg
        self._registry = registry
        self._batcher = Batcher(self._run, max_rows=cfg.serve.batch_rows, num_threads=num_threads)
        self._loading = asyncio.Lock()
        self._refused: str | None = None
        self._domain = load_domain(cfg)
        self._scenes: dict[int | None, ServiceResponse] = {}
        self._limit: asyncio.Task[float | None] | None = None

    async def promote(self, round_id: int) -> bool:
        """Load a round, try it, and promote it; requests are answered meanwhile.

        False when the round is refused, for the reason in `status`: the promoted one stays, or,
        where there is none, the newest good round before it is promoted.
        """
        self._refused = None
        candidates = [round_id]
        if self._registry.promoted is None:
            known = await asyncio.to_thread(self._registry.known)
            candidates += [number for number in sorted(known, reverse=True) if number < round_id]
        for number in candidates:
            error = await self.prepare(number)
            if error is None:
                self._registry.promote(number)
                break
            _log.error("round %d is refused: %s", number, error)
            self._refused = self._refused or f"round {number} is refused: {error}"
        return self._refused is None

    async def prepare(self, round_id: int) -> str | None:
        """Load and try a round without promoting it; the reason to refuse it, or None."""
        try:
            async with self._loading:
                worker = await asyncio.to_thread(self._registry.get, round_id)
                # In the batches' thread: the round may be the one that answers already.
                await self._batcher.submit(("probe", worker), None, rows=1, deadline=math.inf)
        except Exception as error:
            self._registry.drop(round_id)
            if not isinstance(error, UserError):
                _log.exception("round %d cannot be loaded", round_id)
            return one_line(error)
        return None

    async def predict(self, body: bytes, timeout_s: float) -> ServiceResponse:
        """`PredictRequest` to `PredictReply`."""

        async def reply() -> Message:
            request = parse(PredictRequest, body)
            worker = await self._worker(request.round)
            worker.check_action(request.action)
            frame = await to_frame(request.image, worker.images)
            session = PredictSession(
                worker, self._domain, frame, request, [request.action], self._verifier(request)
            )
            inference = session.request(request.action)
            made: PredictReply = await self._predict(worker, request, inference, 1, deadline)
            return made

        deadline = time.monotonic() + timeout_s
        return await _respond(reply)

    async def label(self, body: bytes, timeout_s: float) -> ServiceResponse:
        """`LabelRequest` to `LabelReply`."""

        async def reply() -> Message:
            request = parse(LabelRequest, body)
            worker = await self._worker(request.round)
            pair = Pair(
                await to_frame(request.before, worker.images),
                await to_frame(request.after, worker.images),
            )
            caption: Caption = await self._batcher.submit(
                ("label", worker), pair, rows=1, deadline=deadline
            )
            return label_reply(worker, caption)

        deadline = time.monotonic() + timeout_s
        return await _respond(reply)

    async def score(self, body: bytes, timeout_s: float) -> ServiceResponse:
        """`ScoreRequest` to `ScoreReply`."""

        async def reply() -> Message:
            request = parse(ScoreRequest, body)
            worker = await self._worker(request.round)
            worker.check_action(request.action)
            frames = [
                await to_frame(one, worker.images) for one in (request.image, *request.candidates)
            ]
            item = ScoreItem(source=frames[0], action=request.action, candidates=frames[1:])
            evidence, is_copy = await self._batcher.submit(
                ("score", worker), item, rows=len(frames), deadline=deadline
            )
            return score_reply(worker, evidence, is_copy, self._verifier(request))

        deadline = time.monotonic() + timeout_s
        return await _respond(reply)

    async def look(self, body: bytes, timeout_s: float) -> ServiceResponse:
        """`LookRequest` to `LookReply`."""

        async def reply() -> Message:
            request = parse(LookRequest, body)
            worker = await self._worker(request.round)
            frame = await to_frame(request.image, worker.images)
            if self._limit is None:
                self._limit = asyncio.create_task(self._largest_error(worker))
            limit = await asyncio.shield(self._limit)
            seen, error = await self._seen(worker, frame, deadline)
            return LookReply(
                source=to_base64(frame), seen=to_base64(seen), error=error, limit=limit
            )

        deadline = time.monotonic() + timeout_s
        return await _respond(reply)

    async def words(self, body: bytes, timeout_s: float) -> ServiceResponse:
        """`WordsRequest` to `WordsReply`; takes no time of the models."""

        async def reply() -> Message:
            request = parse(WordsRequest, body)
            tokens = (await self._worker(request.round)).forward.tokens
            return WordsReply(unknown=await asyncio.to_thread(tokens.unknown_words, request.action))

        return await _respond(reply)

    async def _largest_error(self, worker: ModelWorker) -> float | None:
        """Largest error of `_seen` among held-out frames; None where none is at hand."""
        folder = self._registry.folder
        frames = await asyncio.to_thread(
            heldout_frames, self._cfg, self._domain, folder, worker.images
        )
        seen = await asyncio.gather(*[self._seen(worker, frame, math.inf) for frame in frames])
        return max((error for _, error in seen), default=None)

    async def _seen(
        self, worker: ModelWorker, frame: np.ndarray, deadline: float
    ) -> tuple[np.ndarray, float]:
        """What the image codes keep of a frame, and its mean absolute difference from it."""
        seen: np.ndarray = await self._batcher.submit(
            ("look", worker), frame, rows=1, deadline=deadline
        )
        return seen, float(np.abs(seen.astype(float) - frame).mean())

    async def rollout(self, body: bytes, timeout_s: float) -> AsyncGenerator[Event]:
        """`RolloutRequest` to its events; a fault is the last event, named ``error``."""
        deadline = time.monotonic() + timeout_s
        try:
            request = parse(RolloutRequest, body)
            worker = await self._worker(request.round)
            for action in request.actions:
                worker.check_action(action)
            frame = await to_frame(request.image, worker.images)
            session = RolloutSession(worker, self._domain, frame, request, self._verifier(request))
            yield Event("start", session.start().model_dump_json())
            for action in request.actions:
                inference = session.request(action)
                step = await self._predict(
                    worker, request, inference, session.num_sources, deadline
                )
                yield Event("step", step.model_dump_json())
            assert session.end is not None  # the last step has set it
            yield Event("end", session.end.model_dump_json())
        except Exception as error:
            response = to_response(error)
            yield Event("error", response.body, response.status)

    async def models(self) -> ServiceResponse:
        """`ModelsReply`."""

        async def reply() -> Message:
            worker = await self._worker(None)
            reports = await asyncio.to_thread(self._registry.known)
            rounds = [
                RoundInfo(
                    round=number,
                    idm=report.models["idm_digest"],
                    fdp=report.models["fdp_digest"],
                    promoted=number == self._registry.promoted,
                )
                for number, report in reports.items()
            ]
            return ModelsReply(
                name=self._cfg.name,
                family=self._cfg.model.family,
                frame_px=worker.images.frame_px,
                rounds=rounds,
                verifiers=descriptions(),
                verifier=self._cfg.serve.verifier,
                num_samples=self._cfg.serve.num_samples,
            )

        return await _respond(reply)

    async def scenes(self) -> ServiceResponse:
        """`ScenesReply`, made once for every round that is promoted."""

        async def reply() -> Message:
            worker = await self._worker(promoted)
            found = await asyncio.to_thread(example_scenes, self._domain, self._registry.folder)
            contrast = await self._contrast(worker)
            scenes = [
                Scene(name=one.name, image=to_base64(one.frame), actions=one.actions)
                for one in found
            ]
            return ScenesReply(scenes=scenes, contrast=contrast)

        promoted = self._registry.promoted
        if promoted not in self._scenes:
            made = await _respond(reply)
            if made.status != 200:
                return made
            self._scenes = {promoted: made}
        return self._scenes[promoted]

    async def _contrast(self, worker: ModelWorker) -> Contrast | None:
        """The reply's contrast of the first round and the worker's."""
        folder, last = self._registry.folder, worker.round_id
        first = min(await asyncio.to_thread(self._registry.known))
        found = await asyncio.to_thread(contrast, self._cfg, folder, first, last)
        if found is None:
            return None
        shown = await asyncio.gather(
            *[
                self._batcher.submit(("show", worker), codes_L, rows=1, deadline=math.inf)
                for codes_L in found.codes
            ]
        )
        source, target, *drawn = map(to_base64, shown)
        return Contrast(
            action=found.action,
            source=source,
            target=target,
            drawn=dict(zip((first, last), drawn, strict=True)),
            num_pairs=found.num_pairs,
            num_gained=found.num_gained,
            num_lost=found.num_lost,
        )

    async def status(self) -> ServiceStatus:
        """State, for readiness and metrics."""
        return ServiceStatus(
            promoted=self._registry.promoted,
            refused=self._refused,
            waiting=self._batcher.depth,
            batch_sizes=dict(self._batcher.sizes),
            batch_seconds=self._batcher.seconds,
        )

    async def _worker(self, round_id: int | None) -> ModelWorker:
        found = self._registry.cached(round_id)
        if found is not None:
            return found
        async with self._loading:
            return await asyncio.to_thread(self._registry.get, round_id)

    def _verifier(self, request: Sampling | ScoreRequest) -> VerifierName:
        return request.verifier or self._cfg.serve.verifier

    async def _predict(
        self,
        worker: ModelWorker,
        request: Sampling,
        inference: InferenceRequest,
        sources: int,
        deadline: float,
    ) -> Any:
        num_samples = request.n or self._cfg.serve.num_samples
        sampling = SamplingParams(
            num_samples=num_samples,
            temperature=request.temperature,
            guidance=self._cfg.serve.guidance,
        )
        return await self._batcher.submit(
            ("predict", worker, sampling), inference, rows=sources * num_samples, deadline=deadline
        )

    @staticmethod
    def _run(key: tuple[Any, ...], items: Any, more: Callable[[], list[Any]]) -> Iterable[Any]:
        """A batch, in the batcher's thread."""
        task, worker, *sampling = key
        if task == "look":
            return [worker.look(frame) for frame in items]
        if task == "show":
            return [worker.decode(codes_L) for codes_L in items]
        if task == "label":
            captions: list[Any] = worker.label(items)
            return captions
        if task == "score":
            return [worker.score(item) for item in items]
        if task == "probe":
            worker.probe()
            return [None] * len(items)
        results: Iterable[Any] = worker.predict_joining(items, *sampling, more)
        return results


def label_reply(worker: ModelWorker, caption: Caption) -> LabelReply:
    """The IDM's sentence as a reply."""
    return LabelReply(
        action=caption.action,
        logprob=float(sum(caption.token_logprobs)),
        token_logprobs=list(caption.token_logprobs),
        round=worker.round_id,
        idm=worker.inverse.digest,
    )


def score_reply(
    worker: ModelWorker, evidence: Evidence, is_copy: NDArray[np.bool_], verifier: VerifierName
) -> ScoreReply:
    """The likelihoods of one source's candidates as a reply."""
    scores = VERIFIERS[verifier](evidence)
    return ScoreReply(
        scores=scores[0].tolist(),
        chosen=int(choose(scores)[0]),
        action_logprobs=evidence.action[0].tolist(),
        action_logprob_of_copy=float(evidence.action_of_copy[0]),
        frame_logprobs=evidence.frame[0].tolist(),
        is_copy=is_copy[0].tolist(),
        round=worker.round_id,
        idm=worker.inverse.digest,
        fdp=worker.forward.digest,
    )


async def _respond(make: Callable[[], Awaitable[Message]]) -> ServiceResponse:
    try:
        message = await make()
    except Exception as error:
        return to_response(error)
    return ServiceResponse(200, message.model_dump_json())
