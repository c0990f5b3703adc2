"""Decoding with steps of one shape, which a GPU captures once and then replays.

A step of a large model starts more than a thousand kernels, which takes a GPU's driver longer than
the kernels themselves. Here every sample is a branch of its own from its first code on, in buffers
that stay where they are, so that a step can be a CUDA graph. Without a GPU steps run as they are.

R branches, S drawn tokens.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dynamics.inference.shared_prefix import Branches, Place, SharedPrefixDecoder, mix

_BLOCK = 128
"""Drawn tokens that a step looks at are a multiple of this, the later ones hidden: a graph each."""


class _StaticBranches(Branches):
    """`Branches` of which every row has one, for good."""

    _graph: Any = None
    _length = 0
    _ids: Tensor
    """The tokens that follow, int64 [R]."""
    _at: Tensor
    """The step, int64 [1]."""

    def split(self, branch_WR: Tensor, drawn_R: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Branches.split`."""
        ways, rows = branch_WR.shape
        return branch_WR.flatten(), drawn_R.repeat(ways), torch.arange(ways * rows).view(ways, rows)

    def grow(self, parent_n: Tensor, ids_n: Tensor) -> None:
        """See `Branches.grow`."""
        if not self._step:
            self._begin(parent_n.to(self._model.device))
        self._ids.copy_(ids_n)
        self._at.fill_(self._step)
        length = min(-(-(self._step + 1) // _BLOCK) * _BLOCK, self._suffix[0][0].shape[2])
        if length != self._length or self._ids.device.type != "cuda":
            self._length, self._graph = length, None
            self._advance(self._ids)  # on a GPU: what a capture needs to have run before
        else:
            if self._graph is None:
                self._graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                    self._advance(self._ids)
            self._graph.replay()
        self._step += 1

    def _begin(self, prompt_R: Tensor) -> None:
        """Give every row its place."""
        self._prompt_of = prompt_R
        self._suffix = [tuple(x[prompt_R] for x in pair) for pair in self._suffix]
        self._ids, self._at = torch.zeros_like(prompt_R), prompt_R.new_zeros(1)
        self._places = [
            Place.of(of_B[prompt_R], len(kept[0][0]), 0, ordered=False)
            for kept, of_B in self._shared
        ]
        self._hidden = None if self._fillers is None else self._fillers[prompt_R]

    def _looking(self) -> Callable[[int, Tensor, Tensor, Tensor], Tensor]:
        later = torch.arange(self._length, device=self._at.device) > self._at
        later_RS = later.expand(len(self._prompt_of), -1)

        def look(number: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            for kept, new in zip(self._suffix[number], (key, value), strict=True):
                kept.index_copy_(2, self._at, new[:, :, None])
            near = tuple(kept[:, :, : self._length] for kept in self._suffix[number])
            shared = [layers[number] for layers, _ in self._shared]
            return mix(query, shared, self._places, near, self._hidden, later_RS)

        return look

    def _turns_now(self) -> tuple[Tensor, Tensor]:
        places_R = self._ends[self._prompt_of] + self._at
        cos, sin = (turn[places_R, None] for turn in self._turns)
        return cos, sin


class CapturedDecoder(SharedPrefixDecoder):
    """`SharedPrefixDecoder` that captures the steps in which frames are drawn."""

    @property
    def _code_branches(self) -> type[Branches]:
        return _StaticBranches
