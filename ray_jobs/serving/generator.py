"""The replicas behind the HTTP layer: the generator (FDP) and the verifier (IDM) of a run.

Serve calls ``reconfigure`` with ``{"round": 3}`` to promote a round, which is loaded and tried
beside the promoted one and takes over between two requests. A bad round changes nothing; ``status``
holds the reason. Raising would make Serve replace a working replica by one that cannot start.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from ray.exceptions import RayActorError
from ray.serve.handle import DeploymentHandle

from dynamics.core.config import LoopConfig
from dynamics.core.places import as_place
from dynamics.core.records import ModelRef
from dynamics.inference.idm import Caption, InverseDynamics
from dynamics.inference.load import load_fdp, load_idm, load_pair
from dynamics.serving.backend import ServiceStatus
from dynamics.serving.model_registry import ModelRegistry
from dynamics.serving.model_worker import Inverse, ModelWorker, for_clients
from dynamics.serving.service import RoundService
from dynamics.storage.run_folder import RunFolder

_log = logging.getLogger(__name__)

ATTEMPTS = 4
"""Most tries of a call whose replicas die. Repeating is safe: seeds decide the answer."""


class Generator:
    """One replica: the FDP of the rounds that are asked, and their IDM unless it is elsewhere.

    Args:
        cfg: The run's config, with the serving section in force.
        run_dir: The run folder, absolute.
        verifier: The `Verifier` replicas; none = both adapters are held here.
    """

    def __init__(
        self, cfg: LoopConfig, run_dir: str, verifier: DeploymentHandle[Any] | None = None
    ) -> None:
        model = for_clients(cfg.model)

        def load(round_id: int, models: ModelRef) -> ModelWorker:
            inverse: Inverse
            if verifier is None:
                inverse, forward = load_pair(models, model)
            else:
                inverse = RemoteInverse(verifier, round_id, models.idm_digest)
                forward = load_fdp(models, model)
            return ModelWorker(round_id, inverse, forward, cfg.label.max_action_tokens)

        self._cfg = cfg
        registry = ModelRegistry(cfg, RunFolder(as_place(run_dir)), load)
        # While the verifier scores one batch elsewhere, the next one is drawn here.
        self.service = RoundService(cfg, registry, num_threads=1 if verifier is None else 2)

    async def reconfigure(self, user_config: dict[str, int]) -> None:
        """Promote ``user_config["round"]``, or keep the promoted one when it is bad."""
        await self.service.promote(user_config["round"])

    async def prepare(self, round_id: int) -> str | None:
        """As `RoundService.prepare`."""
        return await self.service.prepare(round_id)

    async def predict(self, body: bytes, timeout_s: float) -> tuple[int, str]:
        """As `RoundService.predict`."""
        return await self.service.predict(body, timeout_s)

    async def predict_all(self, requests: list[tuple[bytes, float]]) -> list[tuple[int, str]]:
        """As `predict`, for several requests."""
        return list(await asyncio.gather(*[self.predict(*request) for request in requests]))

    async def label(self, body: bytes, timeout_s: float) -> tuple[int, str]:
        """As `RoundService.label`."""
        return await self.service.label(body, timeout_s)

    async def score(self, body: bytes, timeout_s: float) -> tuple[int, str]:
        """As `RoundService.score`."""
        return await self.service.score(body, timeout_s)

    async def look(self, body: bytes, timeout_s: float) -> tuple[int, str]:
        """As `RoundService.look`."""
        return await self.service.look(body, timeout_s)

    async def words(self, body: bytes, timeout_s: float) -> tuple[int, str]:
        """As `RoundService.words`."""
        return await self.service.words(body, timeout_s)

    async def rollout(
        self, body: bytes, timeout_s: float
    ) -> AsyncGenerator[tuple[str, str, int], None]:
        """As `RoundService.rollout`."""
        async for event in self.service.rollout(body, timeout_s):
            yield event

    async def models(self) -> tuple[int, str]:
        """As `RoundService.models`."""
        return await self.service.models()

    async def scenes(self) -> tuple[int, str]:
        """As `RoundService.scenes`."""
        return await self.service.scenes()

    async def status(self) -> ServiceStatus:
        """As `RoundService.status`."""
        return await self.service.status()


class Verifier:
    """One replica with the IDM of the rounds that are asked."""

    def __init__(self, cfg: LoopConfig, run_dir: str) -> None:
        def load(round_id: int, models: ModelRef) -> InverseDynamics:
            return load_idm(models, for_clients(cfg.model))

        self._registry = ModelRegistry(cfg, RunFolder(as_place(run_dir)), load)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="idm")

    async def reconfigure(self, user_config: dict[str, int]) -> None:
        """Load ``user_config["round"]``; the generator tries it."""
        round_id = user_config["round"]
        try:
            await self._in_thread(self._registry.get, round_id)
        except Exception:
            _log.exception("round %d cannot be loaded", round_id)
        else:
            self._registry.promote(round_id)

    async def action_logprobs(
        self, round_id: int, source_BL: np.ndarray, target_BL: np.ndarray, actions: list[str]
    ) -> np.ndarray:
        """As `InverseDynamics.action_logprobs`, of a round."""

        def score() -> np.ndarray:
            return self._registry.get(round_id).action_logprobs(source_BL, target_BL, actions)

        scores: np.ndarray = await self._in_thread(score)
        return scores

    async def label(
        self, round_id: int, source_BL: np.ndarray, target_BL: np.ndarray, max_action_tokens: int
    ) -> list[Caption]:
        """As `InverseDynamics.label`, of a round."""

        def caption() -> list[Caption]:
            idm = self._registry.get(round_id)
            return idm.label(source_BL, target_BL, max_action_tokens=max_action_tokens)

        captions: list[Caption] = await self._in_thread(caption)
        return captions

    async def _in_thread(self, call: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *arguments)


class RemoteInverse:
    """A round's IDM in the verifier's replicas; called from the generator's batch thread."""

    def __init__(self, verifier: DeploymentHandle[Any], round_id: int, digest: str) -> None:
        self._verifier = verifier
        self._round_id = round_id
        self.digest = digest

    def action_logprobs(
        self, source_codes_BL: np.ndarray, target_codes_BL: np.ndarray, actions: Sequence[str], /
    ) -> np.ndarray:
        """As `InverseDynamics.action_logprobs`."""
        scores: np.ndarray = self._call(
            "action_logprobs", source_codes_BL, target_codes_BL, list(actions)
        )
        return scores

    def label(
        self, source_codes_BL: np.ndarray, target_codes_BL: np.ndarray, *, max_action_tokens: int
    ) -> list[Caption]:
        """As `InverseDynamics.label`."""
        captions: list[Caption] = self._call(
            "label", source_codes_BL, target_codes_BL, max_action_tokens
        )
        return captions

    def _call(self, method: str, *arguments: Any) -> Any:
        call = getattr(self._verifier, method)
        for attempt in range(ATTEMPTS):
            try:
                return call.remote(self._round_id, *arguments).result()
            except RayActorError:
                if attempt == ATTEMPTS - 1:
                    raise
        raise AssertionError("unreachable")
