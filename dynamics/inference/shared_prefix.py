"""Decoding in which equal beginnings are computed and stored once.

A prompt's keys and values are stored once for all of its samples. Samples of a prompt that have
drawn the same tokens so far are one branch: a step computes a branch once, however many samples
are on it, and a branch splits where its samples draw different tokens.

B distinct prompts of P tokens, R samples of all prompts, n branches, S drawn tokens, D width,
H heads of d channels, V words or codes.
"""

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dynamics.core.errors import UserError
from dynamics.inference.decode import (
    CODES_BATCH,
    SCORE_BATCH,
    TEXT_BATCH,
    row_parts,
    scores_to_draw,
)
from dynamics.inference.decoder import Candidates, DecodedText
from dynamics.inference.sampling import SamplingParams
from dynamics.models.stack import Past, Stack, has_stack
from dynamics.models.tokens import IGNORE
from dynamics.models.vlm import AdapterName, Head, UnifiedVLM, visible

_WORTH_SHARING = 0.15
"""Share of the tokens that equal beginnings must save: copies of keys and values cost, too."""

_Uniform = Callable[[Tensor, int], Tensor]
"""Rows and a step to uniform numbers [R, V]."""


class SharedPrefixDecoder:
    """`Decoder` in this process, over the laid-out weights of `Stack`.

    Raises:
        UserError: the network's layers are of another kind.
    """

    def __init__(self, model: UnifiedVLM, adapter: AdapterName) -> None:
        if not has_stack(model.decoder):
            raise UserError(
                f"the layers of {model.base} have no shared-prefix decoder: "
                "set model.decoder=dynamic_cache"
            )
        self._model, self._adapter = model, adapter
        self.tokens, self.images = model.tokens, model.images
        model.use(adapter)
        self._stack = Stack(model.decoder, adapter)
        size = len(model.text_ids) + len(model.image_ids)
        self._text_place = torch.full((size,), IGNORE, device=model.device)
        self._text_place[model.text_ids] = torch.arange(len(model.text_ids), device=model.device)

    @cached_property
    def _text_head(self) -> Head:
        self._model.use(self._adapter)
        return self._model.text_head()

    @cached_property
    def _image_head(self) -> Head:
        self._model.use(self._adapter)
        return self._model.image_head()

    @torch.inference_mode()
    def sample_text(
        self, prompt_BT: Tensor, sampling: SamplingParams, seeds: Sequence[int]
    ) -> list[list[DecodedText]]:
        """See `Decoder.sample_text`."""
        num, found = sampling.num_samples, list[list[DecodedText]]()
        limit = self.tokens.prompts.action_tokens + 1
        steps = min(sampling.max_tokens or limit, limit)
        for part in row_parts(len(prompt_BT), TEXT_BATCH // num):
            uniform = self._text_uniform(seeds[part], num) if sampling.temperature else None
            ids, logp = self._draw(
                prompt_BT[part], sampling, self._text_head, self._model.text_ids, steps, uniform
            )
            lengths = (ids >= 0).sum(1).tolist()
            texts = [
                DecodedText(row[:length], values[:length])
                for row, values, length in zip(ids.tolist(), logp.tolist(), lengths, strict=True)
            ]
            found += [texts[start : start + num] for start in range(0, len(texts), num)]
        return found

    @torch.inference_mode()
    def sample_codes(
        self, prompt_BT: Tensor, sampling: SamplingParams, seeds: Sequence[int]
    ) -> Candidates:
        """See `Decoder.sample_codes`."""
        num, length = sampling.num_samples, self.tokens.num_image_tokens
        codes, sums = [np.zeros((0, num, length), np.int64)], [np.zeros((0, num))]
        code_of = torch.zeros(len(self._text_place), dtype=torch.int64)
        code_of[self.tokens.image_ids] = torch.arange(self.images.num_codes)
        for part in row_parts(len(prompt_BT), CODES_BATCH // num):
            uniform = self._codes_uniform(seeds[part], sampling) if sampling.temperature else None
            ids, logp = self._draw(
                prompt_BT[part], sampling, self._image_head, self._model.image_ids, length, uniform
            )
            codes.append(code_of[ids].view(-1, num, length).numpy())
            sums.append(logp.double().sum(1).view(-1, num).numpy())
        return Candidates(np.concatenate(codes), np.concatenate(sums))

    def _text_uniform(self, seeds: Sequence[int], num: int) -> _Uniform:
        """A generator a sample, asked in every step of the sample."""
        makers = [torch.Generator().manual_seed(seed + i) for seed in seeds for i in range(num)]
        places = self._model.text_ids.cpu()
        size = len(self._text_place)

        def uniform(rows: Tensor, step: int) -> Tensor:
            drawn = [torch.rand(size, generator=makers[row]) for row in rows.tolist()]
            return torch.stack(drawn)[:, places]

        return uniform

    def _codes_uniform(self, seeds: Sequence[int], sampling: SamplingParams) -> _Uniform:
        """A generator a prompt, asked for all of its drawn samples at once."""
        greedy = int(sampling.greedy_first)
        shape = self.tokens.num_image_tokens, self.images.num_codes
        whole = torch.ones(len(seeds), sampling.num_samples, *shape)
        for samples, seed in zip(whole[:, greedy:], seeds, strict=True):
            samples.uniform_(generator=torch.Generator().manual_seed(seed))
        whole = whole.flatten(0, 1)
        return lambda rows, step: whole[rows, step]

    def _draw(
        self,
        prompt_BT: Tensor,
        sampling: SamplingParams,
        head: Head,
        ids_V: Tensor,
        steps: int,
        uniform: _Uniform | None,
    ) -> tuple[Tensor, Tensor]:
        """Ids [R, S] on the CPU, IGNORE after the end of a sentence, and their log-probabilities.

        Args:
            prompt_BT: the prompts, which may repeat.
            sampling: how to draw.
            head: hidden states to logits over V.
            ids_V: vocabulary ids of the logits.
            steps: most tokens of a sample.
            uniform: random numbers, in the order of ``gumbel_noise``; none = greedy.
        """
        self._model.use(self._adapter)
        distinct, prompt_of = torch.unique(prompt_BT, dim=0, return_inverse=True)
        branch_of = prompt_of.repeat_interleave(sampling.num_samples)
        ids = torch.full((len(branch_of), steps), IGNORE)
        values = torch.zeros(len(branch_of), steps)
        live = torch.arange(len(branch_of))
        branches = _Branches(self._model, self._stack, distinct, steps)
        for step in range(steps):
            logp_nV = head(branches.hidden).float().log_softmax(-1)
            branch_R = branch_of.to(logp_nV.device)
            scores = logp_RV = logp_nV[branch_R]
            if uniform is not None:
                noise = uniform(live, step).clamp_(1e-9, 1 - 1e-7).log_().neg_().log_().neg_()
                if sampling.greedy_first:
                    noise[live % sampling.num_samples == 0] = 0
                scores = scores_to_draw(logp_nV, sampling)[branch_R] + noise.to(logp_RV.device)
            chosen = scores.argmax(-1, keepdim=True)
            values[live, step] = logp_RV.gather(-1, chosen)[:, 0].cpu()
            drawn = ids_V[chosen[:, 0]].cpu()
            ids[live, step] = drawn
            goes_on = drawn != self.tokens.eos
            live = live[goes_on]
            if step == steps - 1 or not len(live):
                break
            keys = branch_of[goes_on] * len(self._text_place) + drawn[goes_on]
            new, branch_of = torch.unique(keys, return_inverse=True)
            branches.grow(new // len(self._text_place), new % len(self._text_place))
        return ids, values

    @torch.inference_mode()
    def score_text(self, prompt_BT: Tensor, texts: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        """See `Decoder.score_text`."""
        sums = [np.zeros(0)]
        for part in row_parts(len(texts), SCORE_BATCH):
            rows = self.tokens.text_rows(prompt_BT[part], texts[part])
            sums.append(self._score(rows.ids, rows.labels, self._text_head, self._text_place))
        return np.concatenate(sums)

    @torch.inference_mode()
    def score_codes(self, prompt_BT: Tensor, codes_BL: NDArray[np.int64]) -> NDArray[np.float64]:
        """See `Decoder.score_codes`."""
        sums = [np.zeros(0)]
        code_of = torch.full_like(self._text_place, IGNORE)
        code_of[self._model.image_ids] = torch.arange(self.images.num_codes, device=code_of.device)
        for part in row_parts(len(codes_BL), SCORE_BATCH):
            rows = self.tokens.code_rows(prompt_BT[part], codes_BL[part])
            sums.append(self._score(rows.ids, rows.labels, self._image_head, code_of))
        return np.concatenate(sums)

    def _score(
        self, ids_BT: Tensor, labels_BT: Tensor, head: Head, place_of: Tensor
    ) -> NDArray[np.float64]:
        """Sum of log p over the labels of each row."""
        self._model.use(self._adapter)
        labels = labels_BT.to(self._model.device)
        wanted = (labels != IGNORE).flatten().nonzero()[:, 0]
        logits = head(self._states(ids_BT, wanted)).float()
        answers = place_of[labels.flatten()[wanted]]
        logp = logits.gather(-1, answers[:, None])[:, 0] - logits.logsumexp(-1)
        sums = torch.zeros(len(labels), dtype=torch.float64, device=labels.device)
        sums.index_add_(0, wanted // labels.shape[1], logp.double())
        return sums.cpu().numpy()

    def _states(self, ids_BT: Tensor, wanted_S: Tensor) -> Tensor:
        """Last hidden states [S, D] at ``wanted_S`` of the B * T positions."""
        length, embed = ids_BT.shape[1], self._model.embed
        places_S = wanted_S % length
        start = _shared_length(ids_BT, int(places_S.min()) if len(places_S) else 0)
        if not start:
            return self._stack(embed(ids_BT), wanted_S)
        distinct, of_row = torch.unique(ids_BT[:, :start], dim=0, return_inverse=True)
        kept: list[tuple[Tensor, Tensor]] = []
        self._stack(embed(distinct), wanted_S[:0], kept)
        rest_S = wanted_S // length * (length - start) + places_S - start
        past = Past(kept, of_row.to(wanted_S.device))
        return self._stack(embed(ids_BT[:, start:]), rest_S, past=past)


def _shared_length(ids_BT: Tensor, most: int) -> int:
    """Length, at most ``most``, of the beginnings to compute once each, 0 where it does not pay.

    At this length the fewest tokens are computed in all.
    """
    rows, length = ids_BT.shape
    ordered = torch.unique(ids_BT[:, :most], dim=0)
    same = (ordered[1:] == ordered[:-1]).long().cumprod(1).sum(1)
    lengths = torch.arange(most + 1)
    distinct = 1 + (same[:, None] < lengths).sum(0)
    tokens = distinct * lengths + rows * (length - lengths)
    best = int(tokens.argmin())
    return best if tokens[best] <= (1 - _WORTH_SHARING) * rows * length else 0


class _Branches:
    """Keys and values of prompts and of what followed them, by branch."""

    def __init__(self, model: UnifiedVLM, stack: Stack, prompt_BP: Tensor, steps: int) -> None:
        self._model, self._stack = model, stack
        rows, self._length = prompt_BP.shape
        kept: list[tuple[Tensor, Tensor]] = []
        last = torch.arange(1, rows + 1, device=model.device) * self._length - 1
        lead = model.tokens.lead(prompt_BP)
        lead = None if lead is None else lead.to(model.device)
        mask = None if lead is None else visible(0, self._length, lead)
        self.hidden = stack(model.embed(prompt_BP), last, kept, mask)
        """Last hidden states of every branch, [n, D]."""
        self._prefix = [tuple(x.transpose(1, 2).contiguous() for x in pair) for pair in kept]
        self._suffix = [
            tuple(x[:, :1].new_empty(rows, steps, *x.shape[2:]) for x in p) for p in kept
        ]
        self._prompt_of = torch.arange(rows, device=model.device)
        self._fillers = None if mask is None else ~mask[:, 0, -1]
        """Tokens of a prompt that nobody sees, bool [B, P]."""
        self._step = 0
        self._turns = stack.turns(self._length, self._length + steps)

    def grow(self, parent_n: Tensor, ids_n: Tensor) -> None:
        """New branches, ordered by parent: an old one and the token that follows it."""
        step, device = self._step, self._model.device
        parent_n = parent_n.to(device)
        same = len(parent_n) == len(self._prompt_of)
        if not (same and bool((parent_n == torch.arange(len(parent_n), device=device)).all())):
            self._suffix = [tuple(x[parent_n] for x in pair) for pair in self._suffix]
            self._prompt_of = self._prompt_of[parent_n]
        counts = torch.bincount(self._prompt_of, minlength=len(self._prefix[0][0]))
        most = int(counts.max())
        first = counts.cumsum(0) - counts
        rank = torch.arange(len(parent_n), device=device) - first[self._prompt_of]
        slot = self._prompt_of * most + rank
        turns = (self._turns[0][step : step + 1], self._turns[1][step : step + 1])
        x_nD = self._model.embed(ids_n[:, None])[:, 0]
        hidden = None if self._fillers is None else self._fillers[self._prompt_of]
        layers = zip(self._stack.layers, self._prefix, self._suffix, strict=True)
        for layer, prefix, suffix in layers:
            query, key, value = layer.heads(x_nD[:, None], turns)
            suffix[0][:, step], suffix[1][:, step] = key[:, 0], value[:, 0]
            own = suffix[0][:, : step + 1], suffix[1][:, : step + 1]
            mixed = _mix(query[:, 0], prefix, own, slot, most, hidden)
            x_nD = layer.rest(x_nD, mixed)
        self.hidden = self._stack.norm(x_nD)
        self._step = step + 1


def _mix(
    query_nHd: Tensor,
    prefix: tuple[Tensor, ...],
    suffix: tuple[Tensor, ...],
    slot_n: Tensor,
    most: int,
    hidden_nP: Tensor | None,
) -> Tensor:
    """Attention of every branch over its prompt [B, K, P, d] and its own tokens [n, S, K, d].

    ``slot_n`` places the branches in B x ``most``, so that a prompt's keys are read once for all of
    its branches. ``hidden_nP`` is True for tokens of the prompt that a branch may not see; None =
    it may see all. Returns [n, H * d].
    """
    (prompts, kv_heads, length, dim), num = prefix[0].shape, len(query_nHd)
    group = query_nHd.shape[1] // kv_heads
    query = query_nHd.reshape(num, kv_heads, group, dim) * dim**-0.5

    def spread(x: Tensor) -> Tensor:
        """[n, K, G, c] to [B, K, most * G, c]."""
        whole = x.new_zeros(prompts * most, *x.shape[1:]).index_copy_(0, slot_n, x)
        return whole.view(prompts, most, kv_heads, group, -1).transpose(1, 2).flatten(2, 3)

    def gathered(x: Tensor) -> Tensor:
        """The inverse of `spread`."""
        whole = x.reshape(prompts, kv_heads, most, group, -1).transpose(1, 2).flatten(0, 1)
        return whole.index_select(0, slot_n)

    far = gathered(spread(query) @ prefix[0].transpose(-1, -2))
    if hidden_nP is not None:
        far = far.masked_fill(hidden_nP[:, None, None], -torch.inf)
    near = query @ suffix[0].permute(0, 2, 3, 1)
    weights = torch.cat([far, near], -1).softmax(-1, dtype=torch.float32).to(query.dtype)
    mixed = gathered(spread(weights[..., :length]) @ prefix[1])
    mixed = mixed + weights[..., length:] @ suffix[1].transpose(1, 2)
    return mixed.flatten(1)
