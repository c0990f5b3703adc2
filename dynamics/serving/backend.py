"""Protocol between the HTTP layer and the service, in the same process or another one."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from dynamics.serving.http.responses import Event, ServiceResponse


@dataclass(slots=True, kw_only=True)
class ServiceStatus:
    """State of the service, for readiness and metrics."""

    promoted: int | None
    refused: str | None
    """Reason why the last promotion failed, if it did."""
    waiting: int
    batch_sizes: dict[int, int]
    """Histogram: batch size, in requests, to number of batches."""
    batch_seconds: float
    """Wall time of all batches, added up, in seconds."""


class Backend(Protocol):
    """The service behind the HTTP layer; bodies are JSON of `dynamics.serving.schemas`."""

    async def predict(self, body: bytes, timeout_s: float) -> ServiceResponse:
        """`PredictRequest` to `PredictReply`."""

    def rollout(self, body: bytes, timeout_s: float) -> AsyncGenerator[Event]:
        """`RolloutRequest` to events, each sent when it is made."""

    async def label(self, body: bytes, timeout_s: float) -> ServiceResponse:
        """`LabelRequest` to `LabelReply`."""

    async def score(self, body: bytes, timeout_s: float) -> ServiceResponse:
        """`ScoreRequest` to `ScoreReply`."""

    async def look(self, body: bytes, timeout_s: float) -> ServiceResponse:
        """`LookRequest` to `LookReply`."""

    async def words(self, body: bytes, timeout_s: float) -> ServiceResponse:
        """`WordsRequest` to `WordsReply`."""

    async def models(self) -> ServiceResponse:
        """`ModelsReply`."""

    async def scenes(self) -> ServiceResponse:
        """`ScenesReply`."""

    async def status(self) -> ServiceStatus:
        """State, for readiness and metrics."""
