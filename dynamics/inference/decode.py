"""Batched decoding with a key-value cache: N samples share the prefill of their prompt.

B prompts, N samples a prompt, R = B * N rows, L codes a frame, T positions, V tokens or codes.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import DynamicCache

from dynamics.inference.budget import Budget
from dynamics.inference.decoder import Candidates, DecodedText
from dynamics.inference.noise import Noise
from dynamics.inference.sampling import SamplingParams
from dynamics.models.tokens import IGNORE, Rows
from dynamics.models.vlm import AdapterName, UnifiedVLM

_LEAVE_BELOW = 0.75
"""Finished sentences leave a batch when a smaller share than this is unfinished."""


def scores_to_draw(
    logp_RV: Tensor, sampling: SamplingParams, plain_RV: Tensor | None = None
) -> Tensor:
    """Log-probabilities as drawn from, [R, V], not normalised; -inf for what is not drawn.

    ``plain_RV`` are those without an action, where guidance acts.
    """
    if plain_RV is not None:
        logp_RV = plain_RV + sampling.guidance * (logp_RV - plain_RV)
    if not sampling.temperature:
        return logp_RV
    scores_RV = logp_RV / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < scores_RV.shape[-1]:
        least_R1 = scores_RV.topk(sampling.top_k).values[:, -1:]
        scores_RV = scores_RV.masked_fill(scores_RV < least_R1, -torch.inf)
    if sampling.top_p < 1:
        sorted_RV, order_RV = scores_RV.softmax(-1).sort(-1, descending=True)
        enough_RV = sorted_RV.cumsum(-1) - sorted_RV >= sampling.top_p
        scores_RV = scores_RV.masked_fill(enough_RV.gather(-1, order_RV.argsort(-1)), -torch.inf)
    if sampling.min_p:
        least_R1 = scores_RV.amax(-1, keepdim=True) + math.log(sampling.min_p)
        scores_RV = scores_RV.masked_fill(scores_RV < least_R1, -torch.inf)
    return scores_RV


def drawn_logprobs(
    scores_mV: Tensor, of_row_R: Tensor, chosen_R: Tensor, sampling: SamplingParams
) -> Tensor:
    """Log-probability [R] of drawing the chosen ones from each row's own of m `scores_to_draw`."""
    if not sampling.temperature:
        return scores_mV.new_zeros(len(chosen_R))
    found_R = scores_mV[of_row_R, chosen_R]
    return found_R if sampling.is_plain else found_R - scores_mV.logsumexp(-1)[of_row_R]


class _Picker:
    """Picks the next token of every row: the place where sampling options act.

    Args:
        sampling: How to draw.
        seeds: One a prompt; greedy needs none.
        places_V: See `Noise`.
    """

    def __init__(self, sampling: SamplingParams, seeds: Sequence[int], places_V: Tensor) -> None:
        self._sampling = sampling
        self._noise = Noise(seeds, sampling, places_V) if sampling.temperature else None

    def pick(
        self, logp_RV: Tensor, step: int, rows: Tensor | slice, plain_RV: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Chosen index of each row, its log-probability, and that of drawing it, all [R]."""
        scores_RV = noisy_RV = scores_to_draw(logp_RV, self._sampling, plain_RV)
        if self._noise is not None:
            noisy_RV = scores_RV + self._noise(step, rows)
        chosen_R = noisy_RV.argmax(-1)
        own_R = logp_RV.gather(-1, chosen_R[:, None])[:, 0]
        all_R = torch.arange(len(chosen_R), device=chosen_R.device)
        return chosen_R, own_R, drawn_logprobs(scores_RV, all_R, chosen_R, self._sampling)


class DynamicCacheDecoder:
    """`Decoder` in this process: batched forwards over a cache that grows a step at a time."""

    def __init__(self, model: UnifiedVLM, adapter: AdapterName) -> None:
        self._model = model
        self._adapter = adapter
        self._budget = Budget(model)
        self.tokens = model.tokens
        self.images = model.images

    @torch.inference_mode()
    def sample_text(
        self, prompt_BT: Tensor, sampling: SamplingParams, seeds: Sequence[int]
    ) -> list[list[DecodedText]]:
        """See `Decoder.sample_text`."""
        self._model.use(self._adapter)
        num = sampling.num_samples
        rows: list[DecodedText] = []
        for part in self._budget.texts(prompt_BT, sampling):
            rows += self._sample_text(prompt_BT[part], sampling, seeds[part])
        return [rows[start : start + num] for start in range(0, len(rows), num)]

    def _sample_text(
        self, prompt_BT: Tensor, sampling: SamplingParams, seeds: Sequence[int]
    ) -> list[DecodedText]:
        model, num = self._model, sampling.num_samples
        limit = self.tokens.prompts.action_tokens + 1
        max_tokens = min(sampling.max_tokens or limit, limit)
        hidden, cache, lead = self._prefill(prompt_BT, num)
        num_words = model.logits(hidden[:1]).shape[-1]
        picker = _Picker(sampling, seeds, torch.arange(num_words, device=model.device))
        rows: list[DecodedText] = [DecodedText([], []) for _ in range(len(hidden))]
        live = torch.arange(len(rows), device=model.device)  # rows that the batch still holds
        for step in range(max_tokens):
            logits = model.logits(hidden)[:, 0].float()
            logits[:, model.image_ids] = -torch.inf
            chosen, logp, _ = picker.pick(logits.log_softmax(-1), step, live)
            for row, token, value in zip(
                live.tolist(), chosen.tolist(), logp.tolist(), strict=True
            ):
                ids = rows[row].ids
                if not ids or ids[-1] != self.tokens.eos:
                    ids.append(token)
                    rows[row].logprobs.append(value)
            unfinished = [rows[row].ids[-1] != self.tokens.eos for row in live.tolist()]
            if not any(unfinished) or step == max_tokens - 1:
                break
            # Short sentences leave the batch, in large enough groups to pay for moving the cache.
            if sum(unfinished) / len(unfinished) < _LEAVE_BELOW:
                keep = torch.tensor(unfinished).nonzero()[:, 0].to(model.device)
                cache.batch_select_indices(keep)
                live, chosen = live[keep], chosen[keep]
                lead = None if lead is None else lead[keep]
            hidden = model.hidden(chosen[:, None], cache, lead)
        return rows

    @torch.inference_mode()
    def sample_codes(
        self,
        prompt_BT: Tensor,
        sampling: SamplingParams,
        seeds: Sequence[int],
        plain_BT: Tensor | None = None,
    ) -> Candidates:
        """See `Decoder.sample_codes`. Only the image rows of the head are computed."""
        self._model.use(self._adapter)
        return joined(
            self._sample_codes(
                prompt_BT[part], sampling, seeds[part], None if plain_BT is None else plain_BT[part]
            )
            for part in self._budget.frames(prompt_BT, sampling)
        )

    def _sample_codes(
        self,
        prompt_BT: Tensor,
        sampling: SamplingParams,
        seeds: Sequence[int],
        plain_BT: Tensor | None,
    ) -> Candidates:
        model, length = self._model, self.tokens.num_image_tokens
        # A row without an action follows each row with one, and takes the code that was drawn.
        ways = [prompt_BT] if plain_BT is None else [prompt_BT, plain_BT]
        hidden, cache, lead = self._prefill(torch.cat(ways), sampling.num_samples)
        places_V = torch.arange(model.images.num_codes, device=model.device)
        picker = _Picker(sampling, seeds, places_V)
        rows = len(prompt_BT) * sampling.num_samples
        codes = torch.empty(rows, length, dtype=torch.int64)
        sums = torch.zeros(2, rows, dtype=torch.float64)
        for position in range(length):
            logits = model.image_logits(hidden)[:, 0].float()
            logp, *plain = torch.split(logits.log_softmax(-1), rows)
            chosen, *logps = picker.pick(logp, position, slice(None), *plain)
            codes[:, position] = chosen.cpu()
            sums += torch.stack(logps).double().cpu()
            if position < length - 1:
                ids = model.image_ids[chosen].repeat(len(ways))
                hidden = model.hidden(ids[:, None], cache, lead)
        return candidates(codes, sums, sampling)

    def _prefill(
        self, prompt_BT: Tensor, num_samples: int
    ) -> tuple[Tensor, DynamicCache, Tensor | None]:
        """Last hidden state [R, 1, D] of every row, the cache of its prompt, and its fillers."""
        cache, lead = DynamicCache(), self.tokens.lead(prompt_BT)
        hidden = self._model.hidden(prompt_BT, cache, lead)[:, -1:]
        cache.batch_repeat_interleave(num_samples)
        if lead is not None:
            lead = lead.repeat_interleave(num_samples).to(self._model.device)
        return hidden.repeat_interleave(num_samples, 0), cache, lead

    @torch.inference_mode()
    def score_text(self, prompt_BT: Tensor, texts: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        """See `Decoder.score_text`."""
        self._model.use(self._adapter)
        sums = [np.zeros(0)]
        for part in self._budget.scored_texts(prompt_BT):
            rows = self.tokens.text_rows(prompt_BT[part], texts[part])
            width = self.tokens.prompts.action_tokens + 1
            place = answer_places(rows, width).to(self._model.device)
            labels = rows.labels.to(self._model.device).gather(1, place)
            logits = self._model.logits(take(self._model.hidden(rows.ids), place)).float()
            logits[:, :, self._model.image_ids] = -torch.inf
            logp = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
            sums.append(logp.masked_fill(labels == IGNORE, 0).double().sum(-1).cpu().numpy())
        return np.concatenate(sums)

    @torch.inference_mode()
    def score_codes(self, prompt_BT: Tensor, codes_BL: NDArray[np.int64]) -> NDArray[np.float64]:
        """See `Decoder.score_codes`."""
        self._model.use(self._adapter)
        sums = [np.zeros(0)]
        for part in self._budget.scored_frames(prompt_BT):
            wanted = torch.as_tensor(codes_BL[part], dtype=torch.int64)
            rows = self.tokens.code_rows(prompt_BT[part], wanted)
            place = answer_places(rows, wanted.shape[1]).to(self._model.device)
            hidden = take(self._model.hidden(rows.ids), place)
            logp = self._model.image_logits(hidden).float().log_softmax(-1)
            values = logp.gather(-1, wanted.to(self._model.device)[..., None])[..., 0]
            sums.append(values.double().sum(-1).cpu().numpy())
        return np.concatenate(sums)


def candidates(codes_RL: Tensor, sums_2R: Tensor, sampling: SamplingParams) -> Candidates:
    """The drawn frames of all prompts, with both sums of log-probabilities."""
    num = sampling.num_samples
    own, drawn = sums_2R.view(2, -1, num).numpy()
    if sampling.greedy_first:
        drawn[:, 0] = 0
    return Candidates(codes_RL.view(-1, num, codes_RL.shape[1]).numpy(), own, drawn)


def joined(parts: Iterable[Candidates]) -> Candidates:
    """The candidates of all prompts from those of some."""
    codes, own, drawn = zip(*((p.codes, p.logprobs, p.drawn_logprobs) for p in parts), strict=True)
    return Candidates(np.concatenate(codes), np.concatenate(own), np.concatenate(drawn))


def answer_places(rows: Rows, width: int) -> Tensor:
    """Positions [B, width] at which an answer is predicted, from its first token on."""
    first_B = (rows.labels != IGNORE).int().argmax(1)
    return first_B[:, None] + torch.arange(width)


def take(hidden_BTD: Tensor, place_BW: Tensor) -> Tensor:
    """The states at each row's own positions, [B, W, D]."""
    return hidden_BTD.gather(1, place_BW[..., None].expand(-1, -1, hidden_BTD.shape[-1]))
