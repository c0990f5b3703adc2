"""The inverse dynamics model: names the action between two frames, and scores a named action.

B pairs, L codes a frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dynamics.inference.decoder import DecodedText, Decoder
from dynamics.inference.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class Caption:
    """An action sentence as the model wrote it."""

    action: str
    """Empty when the model did not end it within the limit."""
    token_logprobs: tuple[float, ...]
    """Natural log, one per generated token, end token included; each <= 0."""


class InverseDynamics:
    """IDM: p(action | frame, next frame), by a decoder of the "idm" adapter."""

    def __init__(self, decoder: Decoder, digest: str) -> None:
        self._decoder = decoder
        self._tokens = decoder.tokens
        self.digest = digest
        """sha256 of base and adapter: part of every label's key."""
        self.prompt_version = decoder.tokens.prompts.version

    def label(
        self,
        source_codes_BL: NDArray[np.int64],
        target_codes_BL: NDArray[np.int64],
        *,
        max_action_tokens: int,
    ) -> list[Caption]:
        """Greedy action sentences of frame pairs."""
        greedy = SamplingParams(max_tokens=max_action_tokens)
        return [caption for (caption,) in self.sample(source_codes_BL, target_codes_BL, greedy)]

    def sample(
        self,
        source_codes_BL: NDArray[np.int64],
        target_codes_BL: NDArray[np.int64],
        sampling: SamplingParams,
        *,
        seeds: Sequence[int] = (),
    ) -> list[list[Caption]]:
        """``sampling.num_samples`` sentences a pair; one seed a pair, none when greedy."""
        prompt_BT = self._tokens.idm_prompt(source_codes_BL, target_codes_BL)
        decoded = self._decoder.sample_text(prompt_BT, sampling, seeds)
        return [[self._caption(text) for text in texts] for texts in decoded]

    def action_logprobs(
        self,
        source_codes_BL: NDArray[np.int64],
        target_codes_BL: NDArray[np.int64],
        actions: Sequence[str],
    ) -> NDArray[np.float64]:
        """Sum of log p over the action's tokens and the end token, [B]."""
        prompt_BT = self._tokens.idm_prompt(source_codes_BL, target_codes_BL)
        texts = [self._tokens.sentence_ids(action) for action in actions]
        return self._decoder.score_text(prompt_BT, texts)

    def fits_prompt(self, action: str) -> bool:
        """True for a sentence that is neither empty nor too long for the FDP's prompt."""
        return 1 <= len(self._tokens.text_ids(action)) <= self._tokens.prompts.action_tokens

    def _caption(self, decoded: DecodedText) -> Caption:
        # A sentence cut at the limit becomes empty, so that every filter rejects it; so does one
        # with a word of the tasks that the base was pretrained on.
        ended = bool(decoded.ids) and decoded.ids[-1] == self._tokens.eos
        action = self._tokens.text(decoded.ids[:-1]) if ended else ""
        if self._tokens.unknown_words(action):
            action = ""
        return Caption(action, tuple(decoded.logprobs))
