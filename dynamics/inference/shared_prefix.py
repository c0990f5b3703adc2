"""Decoding in which equal beginnings are computed and stored once.

A prompt's keys and values are stored once for all of its samples. Samples of a prompt that have
drawn the same tokens so far are one branch: a step computes a branch once, however many samples
are on it, and a branch splits where its samples draw different tokens.

B distinct prompts of P tokens, R samples of all prompts, n branches, S drawn tokens, D width,
H heads of d channels, V words or codes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dynamics.core.errors import UserError
from dynamics.inference.budget import Budget
from dynamics.inference.decode import (
    candidates,
    drawn_logprobs,
    joined,
    scores_to_draw,
)
from dynamics.inference.decoder import Candidates, DecodedText
from dynamics.inference.noise import Noise
from dynamics.inference.sampling import SamplingParams
from dynamics.models.packed import MOST
from dynamics.models.stack import Past, Stack, has_stack
from dynamics.models.tokens import IGNORE
from dynamics.models.vlm import AdapterName, Head, UnifiedVLM

_WORTH_SCORING = 0.15
"""Share of the tokens that equal beginnings must save: copies of keys and values cost, too."""
_WORTH_DRAWING = 0.45
"""The same of prompts, where every step has to look at the beginnings apart."""

MIN_ROWS = 8
"""Least rows of a matrix product whose results depend on nothing beside a row: fewer take other
paths through a CPU's library and round differently."""


class SharedPrefixDecoder:
    """`Decoder` in this process, over the laid-out weights of `Stack`.

    Raises:
        UserError: the network's layers are of another kind.
    """

    _steady: ClassVar[bool] = False
    """Results of a row depend on nothing beside it, see `dynamics.inference.steady`."""

    def __init__(self, model: UnifiedVLM, adapter: AdapterName) -> None:
        if not has_stack(model.decoder):
            raise UserError(
                f"the layers of {model.base} have no shared-prefix decoder: "
                "set model.decoder=dynamic_cache"
            )
        self._model, self._adapter = model, adapter
        self._budget = Budget(model)
        self.tokens, self.images = model.tokens, model.images
        model.use(adapter)
        self._packed = sum(p.numel() for p in model.network.parameters()) <= MOST
        self._stack = Stack(model.decoder, adapter, packed=self._packed)
        size = len(model.text_ids) + len(model.image_ids)
        self._text_place = torch.full((size,), IGNORE, device=model.device)
        self._text_place[model.text_ids] = torch.arange(len(model.text_ids), device=model.device)

    @property
    def _code_branches(self) -> "type[Branches]":
        """What frames are drawn on."""
        return Branches

    @cached_property
    def _text_head(self) -> Head:
        self._model.use(self._adapter)
        return self._model.text_head(packed=self._packed)

    @cached_property
    def _image_head(self) -> Head:
        self._model.use(self._adapter)
        return self._model.image_head(packed=self._packed)

    @torch.inference_mode()
    def sample_text(
        self, prompt_BT: Tensor, sampling: SamplingParams, seeds: Sequence[int]
    ) -> list[list[DecodedText]]:
        """See `Decoder.sample_text`."""
        num, found = sampling.num_samples, list[list[DecodedText]]()
        limit = self.tokens.prompts.action_tokens + 1
        steps = min(sampling.max_tokens or limit, limit)
        head, text_ids = self._text_head, self._model.text_ids
        for part in self._budget.texts(prompt_BT, sampling):
            noise = Noise(seeds[part], sampling, text_ids) if sampling.temperature else None
            ways = [prompt_BT[part]]
            ids, (logp, _) = self._draw(ways, sampling, head, text_ids, steps, noise, Branches)
            lengths = (ids >= 0).sum(1).tolist()
            texts = [
                DecodedText(row[:length], values[:length])
                for row, values, length in zip(ids.tolist(), logp.tolist(), lengths, strict=True)
            ]
            found += [texts[start : start + num] for start in range(0, len(texts), num)]
        return found

    @torch.inference_mode()
    def sample_codes(
        self,
        prompt_BT: Tensor,
        sampling: SamplingParams,
        seeds: Sequence[int],
        plain_BT: Tensor | None = None,
    ) -> Candidates:
        """See `Decoder.sample_codes`."""
        length, found = self.tokens.num_image_tokens, list[Candidates]()
        code_of = torch.zeros(len(self._text_place), dtype=torch.int64)
        code_of[self.tokens.image_ids] = torch.arange(self.images.num_codes)
        head, image_ids = self._image_head, self._model.image_ids
        for part in self._budget.frames(prompt_BT, sampling):
            noise = self._codes_noise(seeds[part], sampling)
            ways = [prompt_BT[part]] if plain_BT is None else [prompt_BT[part], plain_BT[part]]
            kind = self._code_branches
            ids, logps = self._draw(ways, sampling, head, image_ids, length, noise, kind)
            sums = torch.stack([logp_RL.double().sum(1) for logp_RL in logps])
            found.append(candidates(code_of[ids], sums, sampling))
        return joined(found)

    def _codes_noise(self, seeds: Sequence[int], sampling: SamplingParams) -> Noise | None:
        if not sampling.temperature:
            return None
        return Noise(
            seeds, sampling, torch.arange(self.images.num_codes, device=self._model.device)
        )

    def _draw(
        self,
        ways: Sequence[Tensor],
        sampling: SamplingParams,
        head: Head,
        ids_V: Tensor,
        steps: int,
        noise: Noise | None,
        kind: "type[Branches]",
    ) -> tuple[Tensor, Tensor]:
        """Ids [R, S] on the CPU, IGNORE after the end of a sentence, and log-probabilities.

        These are [2, R, S]: the model's own, then those of drawing the ids.

        Args:
            ways: the prompts [B, T], which may repeat; after them, where guidance acts, those
                without an action.
            sampling: how to draw.
            head: hidden states to logits over V.
            ids_V: vocabulary ids of the logits.
            steps: most tokens of a sample.
            noise: of the samples over V; none = greedy.
            kind: of branches.
        """
        self._model.use(self._adapter)
        prompts = torch.cat(list(ways))
        prompt_of = torch.arange(len(prompts))
        if not (self._steady and sampling.temperature):  # there, equal ones share no places
            prompts, prompt_of = torch.unique(prompts, dim=0, return_inverse=True)
        branch_of = prompt_of.view(len(ways), -1).repeat_interleave(sampling.num_samples, 1)
        ids = torch.full((branch_of.shape[1], steps), IGNORE)
        values = torch.zeros(2, *ids.shape)
        live = torch.arange(len(ids))
        least = max(MIN_ROWS, sampling.num_samples) if self._steady else 0
        branches = kind(self._model, self._stack, prompts, steps, least)
        for step in range(steps):
            added = None if noise is None else noise(step, live)
            chosen, values[:, live, step] = pick(head(branches.hidden), branch_of, sampling, added)
            drawn = ids_V[chosen].cpu()
            ids[live, step] = drawn
            goes_on = drawn != self.tokens.eos
            live = live[goes_on]
            if step == steps - 1 or not len(live):
                break
            parents, tokens, branch_of = branches.split(branch_of[:, goes_on], drawn[goes_on])
            branches.grow(parents, tokens)
        return ids, values

    @torch.inference_mode()
    def score_text(self, prompt_BT: Tensor, texts: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        """See `Decoder.score_text`."""
        sums = [np.zeros(0)]
        for part in self._budget.scored_texts(prompt_BT):
            rows = self.tokens.text_rows(prompt_BT[part], texts[part])
            sums.append(self._score(rows.ids, rows.labels, self._text_head, self._text_place))
        return np.concatenate(sums)

    @torch.inference_mode()
    def score_codes(self, prompt_BT: Tensor, codes_BL: NDArray[np.int64]) -> NDArray[np.float64]:
        """See `Decoder.score_codes`."""
        sums = [np.zeros(0)]
        code_of = torch.full_like(self._text_place, IGNORE)
        code_of[self._model.image_ids] = torch.arange(self.images.num_codes, device=code_of.device)
        for part in self._budget.scored_frames(prompt_BT):
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
        logits = head(self._states(ids_BT, wanted)).float()[: len(wanted)]
        answers = place_of[labels.flatten()[wanted]]
        logp = logits.gather(-1, answers[:, None])[:, 0] - logits.logsumexp(-1)
        sums = torch.zeros(len(labels), dtype=torch.float64, device=labels.device)
        sums.index_add_(0, wanted // labels.shape[1], logp.double())
        return sums.cpu().numpy()

    def _states(self, ids_BT: Tensor, wanted_S: Tensor) -> Tensor:
        """Last hidden states [S, D] at ``wanted_S`` of the B * T positions."""
        length, embed = ids_BT.shape[1], self._model.embed
        places_S = wanted_S % length
        most = int(places_S.min()) if len(places_S) else 0
        if self._steady:  # the same for a row in any company: after the first frame
            start = min(most, int((ids_BT == self.tokens.eoi).int().argmax(1).min()) + 1)
            wanted_S = filled(wanted_S, MIN_ROWS)
            places_S = wanted_S % length
        else:
            start = _shared_length(ids_BT, most, _WORTH_SCORING)
        if not start:
            return self._stack(embed(ids_BT), wanted_S)
        past = self._stack.past(embed, ids_BT[:, :start])
        rest_S = wanted_S // length * (length - start) + places_S - start
        return self._stack(embed(ids_BT[:, start:]), rest_S, past=past)


def pick(
    logits_nV: Tensor, branch_WR: Tensor, sampling: SamplingParams, noise_RV: Tensor | None
) -> tuple[Tensor, Tensor]:
    """What every row draws from its branch's logits, [R], and its log-probabilities.

    These are [2, R] on the CPU: the model's own, then that of drawing it. ``branch_WR`` has the
    rows' branches, and below them, where guidance acts, those without an action.
    """
    logp_nV = logits_nV.float().log_softmax(-1)
    scores_mV, of_row = _to_draw(logp_nV, branch_WR, sampling)
    noisy = scores_mV[of_row]
    if noise_RV is not None:
        noisy = noisy + noise_RV
    chosen = noisy.argmax(-1)
    own = drawn = logp_nV[branch_WR[0].to(chosen.device), chosen].cpu()
    if not sampling.is_plain:
        drawn = drawn_logprobs(scores_mV, of_row, chosen, sampling).cpu()
    return chosen, torch.stack([own, drawn])


def _to_draw(logp_nV: Tensor, branch_WR: Tensor, sampling: SamplingParams) -> tuple[Tensor, Tensor]:
    """Scores [m, V] that rows draw from, once for those that draw from the same; each row's."""
    branch_WR = branch_WR.to(logp_nV.device)
    if len(branch_WR) == 1:
        return scores_to_draw(logp_nV, sampling), branch_WR[0]
    (own, plain), of_row = torch.unique(branch_WR, dim=1, return_inverse=True)
    return scores_to_draw(logp_nV[own], sampling, logp_nV[plain]), of_row


def _shared_length(ids_BT: Tensor, most: int, worth: float) -> int:
    """Length, at most ``most``, of the beginnings to compute once each.

    At this length the fewest tokens are computed in all; 0 where it saves less than ``worth``.
    """
    rows, length = ids_BT.shape
    ordered = torch.unique(ids_BT[:, :most], dim=0)
    same = (ordered[1:] == ordered[:-1]).long().cumprod(1).sum(1)
    lengths = torch.arange(most + 1)
    distinct = 1 + (same[:, None] < lengths).sum(0)
    tokens = distinct * lengths + rows * (length - lengths)
    best = int(tokens.argmin())
    return best if tokens[best] <= (1 - worth) * rows * length else 0


def filled(x: Tensor, least: int) -> Tensor:
    """The elements, the last one repeated until there are ``least``."""
    if not 0 < len(x) < least:
        return x
    return torch.cat([x, x[-1:].expand(least - len(x), *x.shape[1:])])


class Branches:
    """Keys and values of prompts and of what followed them, by branch.

    Beginnings that prompts have in common, a frame for instance, are kept once for all of them.
    With ``least`` above 0 they are not, every product has `MIN_ROWS` rows, and every prompt has
    places for ``least`` branches, see `dynamics.inference.steady`.
    """

    def __init__(
        self, model: UnifiedVLM, stack: Stack, prompt_BP: Tensor, steps: int, least: int = 0
    ) -> None:
        self._model, self._stack, self._least = model, stack, least
        rows, width = prompt_BP.shape
        lead, place_P = model.tokens.lead(prompt_BP), torch.arange(width)
        ends_B = torch.full((rows,), width)
        if lead is not None:  # fillers go to the end, where no token sees them
            prompt_BP = prompt_BP.gather(1, (place_P + lead[:, None]) % width)
            ends_B = ends_B - lead
        start = 0
        if not least:
            start = _shared_length(prompt_BP, int(ends_B.min()) - 1, _WORTH_DRAWING)
        own = torch.arange(rows, device=model.device)
        last = own * (width - start) + ends_B.to(model.device) - start - 1
        late: list[tuple[Tensor, Tensor]] = []
        past = stack.past(model.embed, prompt_BP[:, :start]) if start else None
        last = filled(last, MIN_ROWS if least else 0)
        self.hidden = stack(model.embed(prompt_BP[:, start:]), last, late, past=past)
        """Last hidden states of every branch, [n, D]; fillers may follow."""
        self._shared = [
            ([tuple(x.transpose(1, 2).contiguous() for x in kv) for kv in part.layers], part.of_row)
            for part in (past, Past(late, own))
            if part is not None
        ]
        # Heads before tokens: a product over a part of the tokens needs no copy.
        self._suffix = [
            tuple(x.new_zeros(rows, x.shape[2], steps, x.shape[3]) for x in p) for p in late
        ]
        self._prompt_of = own
        self._fillers = None
        """Tokens of a prompt, without what it shares, that nobody sees, bool [B, P]."""
        if lead is not None:
            self._fillers = (place_P[start:] >= ends_B[:, None]).to(model.device)
        self._ends = ends_B.to(model.device)
        """Tokens of every prompt, [B]."""
        self._step = 0
        self._turns = stack.turns(0, width + steps)

    def split(self, branch_WR: Tensor, drawn_R: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """New branches of rows that drew a token: parents and tokens, [n]; each row's, [W, R]."""
        most = int(drawn_R.max()) + 1
        new, of_row = torch.unique(branch_WR * most + drawn_R, return_inverse=True)
        return new // most, new % most, of_row

    def grow(self, parent_n: Tensor, ids_n: Tensor) -> None:
        """New branches, ordered by parent: an old one and the token that follows it."""
        if self._least:
            parent_n, ids_n = filled(parent_n, MIN_ROWS), filled(ids_n, MIN_ROWS)
        parent_n = parent_n.to(self._model.device)
        same = len(parent_n) == len(self._prompt_of)
        if not (
            same and bool((parent_n == torch.arange(len(parent_n), device=parent_n.device)).all())
        ):
            self._suffix = [tuple(x[parent_n] for x in pair) for pair in self._suffix]
            self._prompt_of = self._prompt_of[parent_n]
        self._advance(ids_n)
        self._step += 1

    def _advance(self, ids_n: Tensor) -> None:
        """The last hidden states after a further token of every branch."""
        look, turns = self._looking(), self._turns_now()
        x_nD = self._model.embed(ids_n[:, None])[:, 0]
        for number, layer in enumerate(self._stack.layers):
            query, key, value = (x[:, 0] for x in layer.heads(x_nD[:, None], turns))
            x_nD = layer.rest(x_nD, look(number, query, key, value))
        self.hidden = self._stack.norm(x_nD)

    def _looking(self) -> Callable[[int, Tensor, Tensor, Tensor], Tensor]:
        """Attention of the step: a layer's number, queries, new keys and values to mixed values."""
        step, hidden = self._step, None
        last, _ = self._shared[-1]
        places = [
            Place.of(of_B[self._prompt_of], len(kept[0][0]), self._least, ordered=kept is last)
            for kept, of_B in self._shared
        ]
        if self._fillers is not None:
            hidden = self._fillers[self._prompt_of]

        def look(number: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            suffix = self._suffix[number]
            suffix[0][:, :, step], suffix[1][:, :, step] = key, value
            own = suffix[0][:, :, : step + 1], suffix[1][:, :, : step + 1]
            return mix(query, [kept[number] for kept, _ in self._shared], places, own, hidden)

        return look

    def _turns_now(self) -> tuple[Tensor, Tensor]:
        """Rotation [n, 1, 1, d] of the token that every branch takes."""
        places_n = self._ends[self._prompt_of] + self._step
        cos, sin = (turn[places_n, None] for turn in self._turns)
        return cos, sin


@dataclass(frozen=True, slots=True)
class Place:
    """Places of n branches in a table of groups that read the same keys: each is read once."""

    slot_n: Tensor
    groups: int
    most: int

    @classmethod
    def of(cls, group_n: Tensor, groups: int, least: int, *, ordered: bool) -> "Place":
        """Places in a table as wide as the largest group, and as ``least``."""
        counts = torch.bincount(group_n, minlength=groups)
        first, place_n = (
            counts.cumsum(0) - counts,
            torch.arange(len(group_n), device=group_n.device),
        )
        if ordered:
            rank_n = place_n - first[group_n]
        else:
            order = group_n.argsort(stable=True)
            rank_n = torch.empty_like(group_n)
            rank_n[order] = place_n - first[group_n[order]]
        most = max(least, int(counts.max()))
        return cls(group_n * most + rank_n, groups, most)

    def spread(self, x: Tensor) -> Tensor:
        """[n, K, G, c] to [groups, K, most * G, c]."""
        whole = x.new_zeros(self.groups * self.most, *x.shape[1:])
        whole = whole.index_copy_(0, self.slot_n, x)
        return whole.view(self.groups, self.most, *x.shape[1:]).transpose(1, 2).flatten(2, 3)

    def gathered(self, x: Tensor) -> Tensor:
        """The inverse of `spread`."""
        whole = x.reshape(*x.shape[:2], self.most, -1, x.shape[-1]).transpose(1, 2).flatten(0, 1)
        return whole.index_select(0, self.slot_n)


def mix(
    query_nHd: Tensor,
    shared: Sequence[tuple[Tensor, ...]],
    places: Sequence[Place],
    own: tuple[Tensor, ...],
    hidden_nP: Tensor | None,
    later_nS: Tensor | None = None,
) -> Tensor:
    """Attention of every branch over what it shares and over its own tokens [n, K, S, d].

    Shared keys and values are [groups, K, P, d]. ``hidden_nP`` is True for tokens of the last
    shared ones that a branch may not see, ``later_nS`` for those of its own; None = it may see
    all. Returns [n, H * d].
    """
    _, kv_heads, _, dim = own[0].shape
    query = query_nHd.reshape(len(query_nHd), kv_heads, -1, dim) * dim**-0.5
    scores = [
        place.gathered(place.spread(query) @ keys.transpose(-1, -2))
        for place, (keys, _) in zip(places, shared, strict=True)
    ]
    if hidden_nP is not None:
        scores[-1] = scores[-1].masked_fill(hidden_nP[:, None, None], -torch.inf)
    scores.append(query @ own[0].transpose(-1, -2))
    if later_nS is not None:
        scores[-1] = scores[-1].masked_fill(later_nS[:, None, None], -torch.inf)
    weights = torch.cat(scores, -1).softmax(-1, dtype=torch.float32).to(query.dtype)
    *far, near = torch.split(weights, [part.shape[-1] for part in scores], -1)
    mixed: Tensor = near @ own[1]
    for part, place, (_, values) in zip(far, places, shared, strict=True):
        mixed = mixed + place.gathered(place.spread(part) @ values)
    return mixed.flatten(1)
