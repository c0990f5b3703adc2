"""What the HTTP layer asks of what lies behind it, be it in this process or in others."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from dynamics.serving.http.responses import Answer, Event


@dataclass(slots=True, kw_only=True)
class ServiceStatus:
    """How the service is, for readiness and metrics."""

    promoted: int | None
    refused: str | None
    """Why the round that was to be promoted last was not."""
    waiting: int
    batch_sizes: dict[int, int]
    """Batches that went through the model, by their number of draws."""
    batch_seconds: float
    """Wall time of all of them, added up."""


class Backend(Protocol):
    """What the HTTP layer needs; bodies are JSON of the messages in `dynamics.serving.schemas`."""

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
