"""Forward dynamics prediction: the next frame's codes from a frame and an action sentence.

B sources, N samples each, L codes a frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dynamics.inference.decode import SCORE_BATCH, decode_codes
from dynamics.models.vlm import UnifiedVLM

MICRO_BATCH = 512
"""Sampled rows per forward: bounds cache and sampling noise whatever batch a caller passes."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """Sampled next frames."""

    codes: np.ndarray
    """int64 [B, N, L]."""
    logprobs: np.ndarray
    """float64 [B, N]: sum of log p(codes | source, action), at temperature 1."""


class ForwardDynamics:
    """FDP: p(next frame | frame, action), on a model whose "fdp" adapter is loaded."""

    def __init__(self, model: UnifiedVLM, digest: str) -> None:
        self._model = model
        self.digest = digest
        """sha256 of base and adapter."""

    @property
    def model(self) -> UnifiedVLM:
        """The model behind it, for its image tokenizer."""
        return self._model

    def generate(
        self,
        source_codes_BL: np.ndarray,
        actions: Sequence[str],
        *,
        num_samples: int,
        temperature: float,
        seeds: Sequence[int],
    ) -> Candidates:
        """Sample next frames; one seed a source. Temperature 0 is greedy, with one sample."""
        if temperature == 0 and num_samples != 1:
            raise ValueError("greedy decoding gives one candidate: num_samples must be 1")
        self._model.use("fdp")
        codes, logprobs = [], []
        step = max(1, MICRO_BATCH // num_samples)
        for start in range(0, len(actions), step):
            part = slice(start, start + step)
            decoded = decode_codes(
                self._model,
                self._model.tokens.fdp_prompt(source_codes_BL[part], actions[part]),
                num_samples=num_samples,
                temperature=temperature,
                seeds=seeds[part],
            )
            codes.append(decoded.codes.numpy())
            logprobs.append(decoded.logprobs.numpy())
        return Candidates(np.concatenate(codes), np.concatenate(logprobs))

    @torch.inference_mode()
    def frame_logprobs(
        self, source_codes_BL: np.ndarray, actions: Sequence[str], target_codes_BL: np.ndarray
    ) -> np.ndarray:
        """Sum of log p(target codes | source, action), float64 [B]."""
        self._model.use("fdp")
        length = self._model.tokens.num_image_tokens
        sums: list[np.ndarray] = []
        for start in range(0, len(actions), SCORE_BATCH):
            part = slice(start, start + SCORE_BATCH)
            target = target_codes_BL[part]
            rows = self._model.tokens.fdp_rows(source_codes_BL[part], actions[part], target)
            hidden = self._model.hidden(rows.ids)[:, -length:]
            logp = self._model.image_logits(hidden).float().log_softmax(-1)
            wanted = torch.as_tensor(target, dtype=torch.int64, device=self._model.device)
            values = logp.gather(-1, wanted[..., None])[..., 0]
            sums.append(values.double().sum(-1).cpu().numpy())
        return np.concatenate(sums) if sums else np.zeros(0)
