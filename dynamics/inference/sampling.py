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
