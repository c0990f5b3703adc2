"""Decoding whose results of a row depend on nothing beside it, to the bit; so rows may join.

A service draws with it: a request has the same answer alone and in company, also where others come
and go between its steps.

B prompts of P tokens, R samples of all prompts, n branches, S drawn tokens, K key-value heads of d
channels, V codes; W = 2 ways where guidance acts (with and without the action), else 1.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dynamics.inference.decode import DynamicCacheDecoder, candidates, joined
from dynamics.inference.decoder import Candidates, Decoder, Prompted
from dynamics.inference.noise import Noise
from dynamics.inference.sampling import SamplingParams
from dynamics.inference.shared_prefix import (
    MIN_ROWS,
    Branches,
    Place,
    SharedPrefixDecoder,
    filled,
    mix,
    pick,
)
from dynamics.models.stack import Stack, has_stack
from dynamics.models.vlm import AdapterName, Head, UnifiedVLM

_BLOCK = 64
"""Drawn tokens that a branch looks at are a multiple of this, the later ones hidden: how many are
summed up depends on its own step alone, and branches of one block are one product."""

_APART = 8
"""Steps between two joins: what comes meanwhile joins together. Each join costs a prefill and a
verification: with a join at any step 16 clients of the tiny model had 47 % of the images that the
engine draws in full batches, with 4 steps between them 62 %, with 8 steps 80 % (busy machine)."""


class SteadyPrefixDecoder(SharedPrefixDecoder):
    """`SharedPrefixDecoder` whose results of a row do not depend on the rows beside it, to the bit.

    What decides on the order of a row's sums is the same in any company: no matrix product has
    fewer than `MIN_ROWS` rows, a prompt has as many places for branches as samples, prompts share
    nothing in a draw, and scored rows begin with their first frame.
    """

    _steady: ClassVar[bool] = True

    def sample_codes(
        self,
        prompt_BT: Tensor,
        sampling: SamplingParams,
        seeds: Sequence[int],
        plain_BT: Tensor | None = None,
    ) -> Candidates:
        """See `Decoder.sample_codes`."""
        groups = iter([Prompted(prompt_BT, seeds, plain_BT)])
        return next(self.sample_codes_of(lambda: next(groups, None), sampling))

    @torch.inference_mode()
    def sample_codes_of(
        self, more: Callable[[], Prompted | None], sampling: SamplingParams
    ) -> Iterator[Candidates]:
        """See `JoiningDecoder.sample_codes_of`."""
        self._model.use(self._adapter)
        waiting, found = deque[_Part](), list[Candidates]()
        company = _Company(self._model, self._stack, self._image_head, sampling)
        while True:
            if not waiting and company.is_open and (asked := more()):
                waiting += _parts(asked, self._budget.most_frames(asked.prompts, sampling))
            if waiting and company.num_prompts + waiting[0].num_prompts <= waiting[0].room:
                part = waiting.popleft()
                company.join(part, self._codes_noise(part.seeds, sampling))
            elif not company.groups:
                return
            if finished := company.step():
                sums = torch.stack([logp_RL.double().sum(1) for logp_RL in finished.logps])
                found.append(candidates(finished.codes, sums, sampling))
                if finished.part.is_last:
                    yield joined(found)
                    found = []
                    self._model.use(self._adapter)  # the caller may have used another one


def steady(model: UnifiedVLM, adapter: AdapterName) -> Decoder:
    """The fastest engine whose results of a row depend on nothing else."""
    return (SteadyPrefixDecoder if has_stack(model.decoder) else DynamicCacheDecoder)(
        model, adapter
    )


@dataclass(frozen=True, slots=True)
class _Part:
    """Prompts that fit into memory, of those that came together."""

    ways: list[Tensor]
    """[B, T] each: the prompts, and those without an action where guidance acts."""
    seeds: Sequence[int]
    room: int
    """Most prompts that fit beside each other."""
    is_last: bool

    @property
    def num_prompts(self) -> int:
        """B."""
        return len(self.ways[0])


def _parts(asked: Prompted, room: int) -> Iterator[_Part]:
    ways = [asked.prompts] if asked.plain is None else [asked.prompts, asked.plain]
    total = len(asked.prompts)
    for start in range(0, total, room):
        part = slice(start, start + room)
        yield _Part([way[part] for way in ways], asked.seeds[part], room, part.stop >= total)


@dataclass(slots=True)
class _Group:
    """Rows of a part, as far as they are drawn."""

    part: _Part
    noise: Noise | None
    """None = greedy."""
    codes: Tensor
    """[R, L]."""
    logps: Tensor
    """[2, R, L]: as `pick` has them."""
    step: int = 0


class _Company:
    """Groups of rows that draw together, a code a step, the oldest first."""

    def __init__(
        self,
        model: UnifiedVLM,
        stack: Stack,
        head: Head,
        sampling: SamplingParams,
    ) -> None:
        self._model, self._stack, self._head, self._sampling = model, stack, head, sampling
        self.groups: deque[_Group] = deque()
        self._branches: _JoinedBranches
        self._branch_WR: Tensor

    @property
    def num_prompts(self) -> int:
        """Prompts whose samples are being drawn."""
        return sum(group.part.num_prompts for group in self.groups)

    @property
    def is_open(self) -> bool:
        """True when the last join is long enough ago for another one."""
        return not self.groups or self.groups[-1].step >= _APART

    def join(self, part: _Part, noise: Noise | None) -> None:
        """Let the samples of a part draw, too, from the next step on."""
        num, length = self._sampling.num_samples, self._model.tokens.num_image_tokens
        prompts = torch.cat(part.ways)
        new = _JoinedBranches(self._model, self._stack, prompts, length, max(MIN_ROWS, num))
        branch_WR = torch.arange(len(prompts)).view(len(part.ways), -1).repeat_interleave(num, 1)
        if self.groups:
            count = int(self._branch_WR.max()) + 1
            self._branches.join(new, count)
            branch_WR = torch.cat([self._branch_WR, branch_WR + count], 1)
        else:
            self._branches = new
        self._branch_WR = branch_WR
        rows = branch_WR.new_empty(num * part.num_prompts, length)
        self.groups.append(_Group(part, noise, rows, torch.empty(2, *rows.shape)))

    def step(self) -> _Group | None:
        """Draw every row's next code; the group that has all of its codes leaves."""
        added = [group.noise(group.step) for group in self.groups if group.noise]
        noise = torch.cat(added) if added else None
        logits = self._head(self._branches.hidden)
        chosen, logps = pick(logits, self._branch_WR, self._sampling, noise)
        chosen = chosen.cpu()
        sizes = [len(group.codes) for group in self.groups]
        for group, codes, logp in zip(
            self.groups, torch.split(chosen, sizes), torch.split(logps, sizes, 1), strict=True
        ):
            group.codes[:, group.step], group.logps[:, :, group.step] = codes, logp
            group.step += 1
        done = None
        if self.groups[0].step == self.groups[0].codes.shape[1]:
            done = self.groups.popleft()
            self._branches.leave(sum(map(len, done.part.ways)))
            chosen, self._branch_WR = chosen[sizes[0] :], self._branch_WR[:, sizes[0] :]
        if self.groups:
            drawn = self._model.tokens.image_ids[chosen]
            parents, tokens, self._branch_WR = self._branches.split(self._branch_WR, drawn)
            self._branches.grow(parents, tokens)
        return done


class _JoinedBranches(Branches):
    """`Branches` of prompts that came at different times, the oldest first."""

    def __init__(
        self, model: UnifiedVLM, stack: Stack, prompt_BP: Tensor, steps: int, least: int
    ) -> None:
        super().__init__(model, stack, prompt_BP, steps, least)
        self._step_B = torch.zeros(len(prompt_BP), dtype=torch.int64)
        """Tokens that follow each prompt."""

    def join(self, other: "_JoinedBranches", count: int) -> None:
        """Take another one's prompts, which have drawn nothing yet, after ``count`` branches."""
        (mine, _), (theirs, own) = self._shared[0], other._shared[0]
        prompts, rows = len(self._step_B), len(own)
        self.hidden = filled(torch.cat([self.hidden[:count], other.hidden[:rows]]), MIN_ROWS)
        self._prompt_of = torch.cat([self._prompt_of[:count], own + prompts])
        if self._fillers is not None or other._fillers is not None:
            self._fillers = torch.cat([one._all_fillers() for one in (self, other)])
        self._ends, self._step_B = (
            torch.cat(pair) for pair in ((self._ends, other._ends), (self._step_B, other._step_B))
        )
        for number, (kept, new) in enumerate(zip(mine, theirs, strict=True)):
            mine[number] = tuple(torch.cat(pair) for pair in zip(kept, new, strict=True))
            pairs = zip(self._suffix[number], other._suffix[number], strict=True)
            self._suffix[number] = tuple(torch.cat([old[:count], new]) for old, new in pairs)

    def _all_fillers(self) -> Tensor:
        if self._fillers is not None:
            return self._fillers
        keys = self._shared[0][0][0][0]
        return torch.zeros(len(keys), keys.shape[2], dtype=torch.bool, device=keys.device)

    def leave(self, count: int) -> None:
        """Give up the first prompts; no branch of theirs grows any more."""
        kept, own = self._shared[0]
        self._shared = [([tuple(x[count:] for x in pair) for pair in kept], own)]
        self._ends, self._step_B = self._ends[count:], self._step_B[count:]
        if self._fillers is not None:
            self._fillers = self._fillers[count:]
        self._prompt_of = self._prompt_of - count

    def grow(self, parent_n: Tensor, ids_n: Tensor) -> None:
        """See `Branches.grow`."""
        super().grow(parent_n, ids_n)
        self._step_B += 1

    def _looking(self) -> Callable[[int, Tensor, Tensor, Tensor], Tensor]:
        step_n = self._steps()
        row_n, blocks = torch.arange(len(step_n), device=step_n.device), list(self._blocks(step_n))

        def look(number: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            own, mixed = self._suffix[number], []
            own[0][row_n, :, step_n], own[1][row_n, :, step_n] = key, value
            for block in blocks:
                kept = tuple(x[block.prompts] for x in self._shared[0][0][number])
                near = tuple(x[block.rows, :, : block.later.shape[1]] for x in own)
                query_of = query[block.rows]
                mixed.append(mix(query_of, [kept], [block.place], near, block.hidden, block.later))
            return torch.cat(mixed)

        return look

    def _blocks(self, step_n: Tensor) -> "Iterator[_Block]":
        """Branches by the number of own tokens to look at."""
        numbers, counts = torch.unique_consecutive(self._step_B // _BLOCK, return_counts=True)
        stops = counts.cumsum(0)
        edges = torch.searchsorted(self._prompt_of, stops.to(self._prompt_of.device)).tolist()
        place_S = torch.arange(self._suffix[0][0].shape[2], device=step_n.device)
        first = start = 0
        for number, stop, edge in zip(numbers.tolist(), stops.tolist(), edges, strict=True):
            rows, own = slice(start, edge), self._prompt_of[start:edge]
            yield _Block(
                rows=rows,
                prompts=slice(first, stop),
                place=Place.of(own - first, stop - first, self._least, ordered=True),
                hidden=None if self._fillers is None else self._fillers[own],
                later=place_S[: (number + 1) * _BLOCK] > step_n[rows, None],
            )
            first, start = stop, edge

    def _turns_now(self) -> tuple[Tensor, Tensor]:
        places_n = self._ends[self._prompt_of] + self._steps()
        cos, sin = (turn[places_n, None] for turn in self._turns)
        return cos, sin

    def _steps(self) -> Tensor:
        """Tokens [n] that follow each branch's prompt."""
        return self._step_B.to(self._prompt_of.device)[self._prompt_of]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Block:
    """Branches that look at equally many of their own tokens."""

    rows: slice
    prompts: slice
    place: Place
    hidden: Tensor | None
    """Tokens of its prompt that a branch may not see, bool [n, P]."""
    later: Tensor
    """Tokens that are not drawn yet, bool [n, S]."""
