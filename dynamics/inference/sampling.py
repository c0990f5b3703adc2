"""Sampling options of text and frames."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from dynamics.core.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Sampling options of the IDM's sentences and the FDP's frames; the default is greedy.

    Seeds are no part of it: every row brings its own. Example:
    ``SamplingParams(num_samples=8, temperature=0.7)``.

    Raises:
        UserError: an option is out of range, or several samples are to be greedy.
    """

    num_samples: int = 1
    """Samples per prompt."""
    temperature: float = 0.0
    """0 is greedy, 1 the model's own distribution."""
    top_k: int | None = None
    """Only the k likeliest tokens are drawn."""
    top_p: float = 1.0
    """Only the likeliest tokens are drawn that together reach this probability, at the temperature
    and among the top k."""
    greedy_first: bool = False
    """The first sample of every prompt is the greedy one. The others of a frame are those that a
    seed draws without it."""
    max_tokens: int | None = None
    """Most tokens of a sentence; none = the longest that the prompts allow."""

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise UserError(f"num_samples must be at least 1, got {self.num_samples}")
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"temperature must be 0 or above and finite, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k must be at least 1, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if self.temperature == 0 and (self.top_k is not None or self.top_p < 1):
            raise UserError("top_k and top_p need a temperature above 0: greedy has one choice")
        if self.temperature == 0 and self.num_samples > 1:
            raise UserError(
                f"{self.num_samples} samples need a temperature above 0: greedy ones are all equal"
            )
        if self.max_tokens is not None and self.max_tokens < 1:
            raise UserError(f"max_tokens must be at least 1, got {self.max_tokens}")

    def changed(self) -> dict[str, Any]:
        """Options that differ from their default: keys made of these outlive new options."""
        default = asdict(SamplingParams())
        return {name: value for name, value in asdict(self).items() if value != default[name]}


GREEDY = SamplingParams()
