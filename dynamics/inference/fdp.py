"""Forward dynamics prediction: the next frame's codes from a frame and an action sentence.

B sources, N samples each, L codes a frame.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dynamics.inference.decoder import Candidates, Decoder
from dynamics.inference.sampling import SamplingParams


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
        prompt_BT, plain_BT = self.tokens.fdp_prompt(source_codes_BL, actions), None
        if sampling.guidance != 1:
            plain_BT = self.tokens.fdp_prompt(source_codes_BL, [None] * len(actions))
        return self._decoder.sample_codes(prompt_BT, sampling, seeds, plain_BT)

    def frame_logprobs(
        self,
        source_codes_BL: NDArray[np.int64],
        actions: Sequence[str],
        target_codes_BL: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """Sum of log p(target codes | source, action), [B]."""
        prompt_BT = self.tokens.fdp_prompt(source_codes_BL, actions)
        return self._decoder.score_codes(prompt_BT, target_codes_BL)
