"""Forward dynamics prediction: the next frame's codes from a frame and an action sentence.

B sources, N samples each, L codes a frame.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dynamics.inference.decoder import Candidates, Decoder, JoiningDecoder, Prompted
from dynamics.inference.sampling import SamplingParams


class Asked(NamedTuple):
    """Sources that come together, with an action and a seed each."""

    sources: NDArray[np.int64]
    """[B, L]."""
    actions: Sequence[str]
    seeds: Sequence[int]


class ForwardDynamics:
    """FDP: p(next frame | frame, action), by a decoder of the "fdp" adapter."""

    def __init__(self, decoder: Decoder, digest: str) -> None:
        self._decoder = decoder
        self.tokens = decoder.tokens
        self.images = decoder.images
        self.digest = digest
        """sha256 of base and adapter."""

    def generate(
        self,
        source_codes_BL: NDArray[np.int64],
        actions: Sequence[str],
        sampling: SamplingParams,
        *,
        seeds: Sequence[int] = (),
    ) -> Candidates:
        """Sample next frames; one seed a source, none when greedy."""
        prompted = self._prompted(Asked(source_codes_BL, actions, seeds), sampling)
        return self._decoder.sample_codes(prompted.prompts, sampling, seeds, prompted.plain)

    def generate_joining(
        self, more: Callable[[], Asked | None], sampling: SamplingParams
    ) -> Iterator[Candidates] | None:
        """As `JoiningDecoder.sample_codes_of`; None where the engine's rows cannot join others."""
        if not isinstance(self._decoder, JoiningDecoder):
            return None

        def prompted() -> Prompted | None:
            asked = more()
            return asked and self._prompted(asked, sampling)

        return self._decoder.sample_codes_of(prompted, sampling)

    def _prompted(self, asked: Asked, sampling: SamplingParams) -> Prompted:
        prompts, plain = self.tokens.fdp_prompt(asked.sources, asked.actions), None
        if sampling.guidance != 1:
            plain = self.tokens.fdp_prompt(asked.sources, [None] * len(asked.actions))
        return Prompted(prompts, asked.seeds, plain)

    def frame_logprobs(
        self,
        source_codes_BL: NDArray[np.int64],
        actions: Sequence[str],
        target_codes_BL: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """Sum of log p(target codes | source, action), [B]."""
        prompt_BT = self.tokens.fdp_prompt(source_codes_BL, actions)
        return self._decoder.score_codes(prompt_BT, target_codes_BL)
