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
    min_p: float = 0.0
    """Only tokens are drawn that are at least this share as likely as the likeliest one, at the
    temperature."""
    guidance: float = 1.0
    """Weight w of classifier-free guidance, for frames: log p(code | frame) +
    w (log p(code | frame, action) - log p(code | frame)). 1 = none."""
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
        if not 0 <= self.min_p <= 1:
            raise UserError(f"min_p must be from 0 to 1, got {self.min_p}")
        if not 0 <= self.guidance < math.inf:
            raise UserError(f"guidance must be 0 or above and finite, got {self.guidance}")
        if self.temperature == 0 and (self.top_k is not None or self.top_p < 1 or self.min_p):
            raise UserError(
                "top_k, top_p and min_p need a temperature above 0: greedy has one choice"
            )
        if self.temperature == 0 and self.num_samples > 1:
            raise UserError(
                f"{self.num_samples} samples need a temperature above 0: greedy ones are all equal"
            )
        if self.max_tokens is not None and self.max_tokens < 1:
            raise UserError(f"max_tokens must be at least 1, got {self.max_tokens}")

    @property
    def is_plain(self) -> bool:
        """True when samples are drawn from the model's own distribution."""
        full = self.top_k is None and self.top_p == 1 and self.min_p == 0
        return self.temperature == 1 and full and self.guidance == 1

    def changed(self) -> dict[str, Any]:
        """Options that differ from their default: keys made of these outlive new options."""
        default = asdict(SamplingParams())
        return {name: value for name, value in asdict(self).items() if value != default[name]}


GREEDY = SamplingParams()

PRESETS: dict[str, SamplingParams] = {
    # Liquid's inference_t2i.py: --cfg 7.0 --TopK 4096 --TopP 0.96 --temperature 0.99.
    "liquid": SamplingParams(temperature=0.99, top_k=4096, top_p=0.96, guidance=7.0),
    # SWIRL's aurora_eval.py and eval_liquid_aurora.sh (arXiv 2602.06130): cfg_scale 1.0.
    "swirl": SamplingParams(temperature=0.75, top_k=4096, top_p=0.96),
    # deepseek-ai/Janus, generation_inference.py: cfg_weight 5, temperature 1.
    "janus": SamplingParams(temperature=1.0, guidance=5.0),
    # GAIR-NLP/anole, Options of chameleon/inference/chameleon.py: temp 0.7, top_p 0.9. Its weight 3
    # is of the text over the picture; its second one, 1.2 of the picture over nothing, is left out:
    # the plain row here still sees the frame.
    "anole": SamplingParams(temperature=0.7, top_p=0.9, guidance=3.0),
}
"""Published settings of drawing a frame, by the model's name."""
