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
    """Why the last promotion failed, if it did."""
    waiting: int
    batch_sizes: dict[int, int]
    """Histogram: batch size, in requests, to number of batches."""
    batch_seconds: float
    """Wall time of all batches, added up, in seconds."""


class Backend(Protocol):
    """The service behind the HTTP layer; bodies are JSON of `dynamics.serving.schemas`."""

    async def predict(self, body: bytes, timeout_s: float) -> ServiceResponse:
        """The next frame."""

    def rollout(self, body: bytes, timeout_s: float) -> AsyncGenerator[Event]:
        """Events as they are made."""

    async def label(self, body: bytes, timeout_s: float) -> ServiceResponse:
        """The action between two frames."""

    async def models(self) -> ServiceResponse:
        """Rounds and limits."""

    async def scenes(self) -> ServiceResponse:
        """Examples to begin with."""

    async def status(self) -> ServiceStatus:
        """State, for readiness and metrics."""
