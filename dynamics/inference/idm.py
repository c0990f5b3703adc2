"""The inverse dynamics model: names the action between two frames, and scores a named action.

B pairs, L codes a frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dynamics.inference.decode import SCORE_BATCH, DecodedText, decode_text
from dynamics.models.tokens import IGNORE
from dynamics.models.vlm import UnifiedVLM

MICRO_BATCH = 256
"""Rows per decoding step: keeps the cache small whatever batch a caller passes."""


@dataclass(frozen=True, slots=True)
class Caption:
    """An action sentence as the model wrote it."""

    action: str
    """Empty when the model did not end it within the limit."""
    token_logprobs: tuple[float, ...]
    """Natural log, one per generated token, end token included; each <= 0."""


class InverseDynamics:
    """IDM: p(action | frame, next frame), on a model whose "idm" adapter is loaded."""

    def __init__(self, model: UnifiedVLM, digest: str) -> None:
        self._model = model
        self.digest = digest
        """sha256 of base and adapter: part of every label's key."""
        self.prompt_version = model.tokens.prompts.version

    def label(
        self, source_codes_BL: np.ndarray, target_codes_BL: np.ndarray, *, max_action_tokens: int
    ) -> list[Caption]:
        """Greedy action sentences of frame pairs; codes are int64 [B, L]."""
        self._model.use("idm")
        captions: list[Caption] = []
        for start in range(0, len(source_codes_BL), MICRO_BATCH):
            part = slice(start, start + MICRO_BATCH)
            prompt = self._model.tokens.idm_prompt(source_codes_BL[part], target_codes_BL[part])
            decoded = decode_text(self._model, prompt, max_tokens=self._limit(max_action_tokens))
            captions += map(self._caption, decoded)
        return captions

    def sample(
        self,
        source_codes_BL: np.ndarray,
        target_codes_BL: np.ndarray,
        *,
        num_samples: int,
        temperature: float,
        seeds: Sequence[int],
        max_action_tokens: int,
        greedy_first: bool = False,
    ) -> list[list[Caption]]:
        """``num_samples`` sentences a pair, sampled, or the first one greedy.

        ``seeds`` holds one seed a pair.
        """
        self._model.use("idm")
        samples: list[list[Caption]] = []
        step = max(1, MICRO_BATCH // num_samples)
        for start in range(0, len(source_codes_BL), step):
            part = slice(start, start + step)
            prompt = self._model.tokens.idm_prompt(source_codes_BL[part], target_codes_BL[part])
            row_seeds = [seed + sample for seed in seeds[part] for sample in range(num_samples)]
            decoded = decode_text(
                self._model,
                prompt,
                num_samples=num_samples,
                max_tokens=self._limit(max_action_tokens),
                temperature=temperature,
                seeds=row_seeds,
                greedy_first=greedy_first,
            )
            captions = [self._caption(text) for text in decoded]
            samples += [captions[i : i + num_samples] for i in range(0, len(captions), num_samples)]
        return samples

    @torch.inference_mode()
    def action_logprobs(
        self, source_codes_BL: np.ndarray, target_codes_BL: np.ndarray, actions: Sequence[str]
    ) -> np.ndarray:
        """Sum of log p over the action's tokens and the end token, float64 [B]."""
        self._model.use("idm")
        sums: list[np.ndarray] = []
        for start in range(0, len(actions), SCORE_BATCH):
            part = slice(start, start + SCORE_BATCH)
            rows = self._model.tokens.idm_rows(
                source_codes_BL[part], target_codes_BL[part], actions[part]
            )
            width = self._model.tokens.prompts.action_tokens + 1
            labels = rows.labels[:, -width:].to(self._model.device)
            logits = self._model.logits(self._model.hidden(rows.ids)[:, -width:]).float()
            logits[:, :, self._model.image_ids] = -torch.inf
            logp = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
            sums.append(logp.masked_fill(labels == IGNORE, 0).double().sum(-1).cpu().numpy())
        return np.concatenate(sums) if sums else np.zeros(0)

    def fits_prompt(self, action: str) -> bool:
        """Whether a sentence is neither empty nor too long to condition the FDP on."""
        tokens = self._model.tokens
        return 1 <= len(tokens.text_ids(action)) <= tokens.prompts.action_tokens

    def _limit(self, max_action_tokens: int) -> int:
        return min(max_action_tokens, self._model.tokens.prompts.action_tokens + 1)

    def _caption(self, decoded: DecodedText) -> Caption:
        # What ran into the limit is half a sentence: empty, so that every filter rejects it.
        ended = bool(decoded.ids) and decoded.ids[-1] == self._model.tokens.eos
        action = self._model.tokens.text(decoded.ids[:-1]) if ended else ""
        return Caption(action, tuple(decoded.logprobs))
