"""Batched decoding with a key-value cache: greedy text, and N image samples from one prefill.

B prompts, N samples a prompt, L codes a frame, T positions, K codes in the codebook.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from dynamics.models.vlm import UnifiedVLM

_LEAVE_BELOW = 0.75
"""Share of a batch's sentences that are unfinished."""

SCORE_BATCH = 64
"""Rows per forward when given rows are only scored: what fits a core's own cache is up to twice as
fast as 512 rows, and a large model keeps its GPU busy with as many."""


@dataclass(frozen=True, slots=True)
class DecodedText:
    """Generated ids and their natural-log probabilities, end token included when it came."""

    ids: list[int]
    logprobs: list[float]


@dataclass(frozen=True, slots=True)
class DecodedCodes:
    """Generated image codes."""

    codes: Tensor
    """int64 [B, N, L]."""
    logprobs: Tensor
    """float64 [B, N]: sum of natural-log probabilities of the codes at temperature 1."""


def gumbel_noise(seeds: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """Standard Gumbel noise [len(seeds), *shape]; a row depends on its own seed only.

    Adding it to logits and taking the argmax samples from them, so a row draws the same sample
    alone or among others.
    """
    rows = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        uniform = torch.rand(shape, generator=generator).clamp_(1e-9, 1 - 1e-7)
        rows.append(-torch.log(-torch.log(uniform)))
    return torch.stack(rows)


@torch.inference_mode()
def decode_text(
    model: UnifiedVLM,
    prompt_BT: Tensor,
    *,
    max_tokens: int,
    num_samples: int = 1,
    temperature: float = 0.0,
    seeds: Sequence[int] | None = None,
    greedy_first: bool = False,
) -> list[DecodedText]:
    """Decode up to ``max_tokens`` text tokens, ``num_samples`` times a prompt, from one prefill.

    Temperature 0 is greedy, else ``seeds`` holds one seed per prompt and sample, samples of a
    prompt side by side, as in the result; with ``greedy_first`` the first sample of every prompt
    is the greedy one. Image codes cannot come out: their logits are left out.
    Log-probabilities are those of temperature 1 over the remaining vocabulary.
    """
    cache = DynamicCache()
    hidden = model.hidden(prompt_BT, cache)[:, -1:].repeat_interleave(num_samples, 0)
    cache.batch_repeat_interleave(num_samples)
    noise = None
    if temperature > 0:
        vocabulary = model.logits(hidden[:1]).shape[-1]
        noise = gumbel_noise(seeds or [], (max_tokens, vocabulary)).to(model.device)
        if greedy_first:
            noise[::num_samples] = 0
    rows: list[DecodedText] = [DecodedText([], []) for _ in range(len(hidden))]
    live = torch.arange(len(rows), device=model.device)  # rows that the batch still holds
    for step in range(max_tokens):
        logits = model.logits(hidden)[:, 0].float()
        logits[:, model.image_ids] = -torch.inf
        logp = logits.log_softmax(-1)
        pick = logp if noise is None else logp / temperature + noise[live, step]
        chosen = pick.argmax(-1)
        values = logp.gather(-1, chosen[:, None])[:, 0].tolist()
        for row, token, value in zip(live.tolist(), chosen.tolist(), values, strict=True):
            ids = rows[row].ids
            if not ids or ids[-1] != model.tokens.eos:
                ids.append(token)
                rows[row].logprobs.append(value)
        open_rows = torch.tensor([rows[row].ids[-1] != model.tokens.eos for row in live.tolist()])
        if not open_rows.any() or step == max_tokens - 1:
            break
        # Short sentences leave the batch, in large enough groups to pay for moving the cache.
        if open_rows.float().mean() < _LEAVE_BELOW:
            keep = open_rows.nonzero()[:, 0].to(model.device)
            cache.batch_select_indices(keep)
            live, chosen = live[keep], chosen[keep]
        hidden = model.hidden(chosen[:, None], cache)
    return rows


@torch.inference_mode()
def decode_codes(
    model: UnifiedVLM,
    prompt_BT: Tensor,
    *,
    num_samples: int,
    temperature: float,
    seeds: Sequence[int] | None = None,
) -> DecodedCodes:
    """Decode L image codes, ``num_samples`` times a prompt, from one prefill.

    Temperature 0 is greedy. Only the image rows of the head are computed, so the distribution is
    the one renormalised over codes, as in training.
    """
    num_prompts, length = len(prompt_BT), model.tokens.num_image_tokens
    cache = DynamicCache()
    hidden = model.hidden(prompt_BT, cache)[:, -1:].repeat_interleave(num_samples, 0)
    cache.batch_repeat_interleave(num_samples)
    noise = None
    if temperature > 0:
        shape = (num_samples, length, model.images.num_codes)
        noise = gumbel_noise(seeds or [], shape).flatten(0, 1).to(model.device)
    codes = torch.empty(num_prompts * num_samples, length, dtype=torch.int64)
    total = torch.zeros(num_prompts * num_samples, dtype=torch.float64)
    for position in range(length):
        logp = model.image_logits(hidden)[:, 0].float().log_softmax(-1)
        pick = logp if noise is None else logp / temperature + noise[:, position]
        chosen = pick.argmax(-1)
        codes[:, position] = chosen.cpu()
        total += logp.gather(-1, chosen[:, None])[:, 0].double().cpu()
        if position < length - 1:
            hidden = model.hidden(model.image_ids[chosen][:, None], cache)
    return DecodedCodes(
        codes.reshape(num_prompts, num_samples, length),
        total.reshape(num_prompts, num_samples),
    )
