"""Noise to draw with: hashes of a row's key, the step and a place, in whole numbers of 32 bits.

A CPU and a GPU compute the same bits, each step's when it is drawn, so that nothing is kept or sent
for later steps, and a row draws the same sample alone or among others.

R samples of all prompts, V words or codes.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dynamics.core.seeds import derive_seed
from dynamics.inference.sampling import SamplingParams


class Noise:
    """Standard Gumbel noise: adding it to logits and taking the argmax samples from them.

    A greedy first sample of a prompt has none. The others are numbered without it.

    Args:
        seeds: one a prompt.
        sampling: how many samples.
        places_V: whole numbers that tell words or codes apart, where the noise is wanted.
    """

    def __init__(self, seeds: Sequence[int], sampling: SamplingParams, places_V: Tensor) -> None:
        first = -int(sampling.greedy_first)
        samples = range(first, first + sampling.num_samples)
        keys = [derive_seed(seed, "noise", sample) for seed in seeds for sample in samples]
        keys_R2 = torch.from_numpy(np.array(keys, np.int64).view(np.int32).reshape(-1, 2))
        drawn_R = torch.tensor([sample >= 0 for _ in seeds for sample in samples])
        self._keys_R2, self._drawn_R = keys_R2.to(places_V.device), drawn_R.to(places_V.device)
        self._places_V = places_V.int()

    def __call__(self, step: int, rows: Tensor | slice = slice(None)) -> Tensor:
        """Of a step and these samples, [R, V]."""
        first, second = self._keys_R2[rows].unbind(1)
        own = _mixed(first ^ _mixed(second + step))
        bits_RV = _mixed(_mixed(self._places_V + own[:, None]) ^ second[:, None])
        # 23 bits and a half: neither 0 nor 1, whose logarithms are infinite.
        uniform = ((bits_RV >> 9) & 0x7FFFFF).float().add_(0.5).mul_(2.0**-23)
        return uniform.log_().neg_().log_().neg_().mul_(self._drawn_R[rows, None])


def _mixed(bits: Tensor) -> Tensor:
    """Every int32 to another one, each bit of which hangs on all of its bits.

    Shifts of int32 repeat the sign, which the masks take off; products wrap around. The constants
    are "lowbias32", C. Wellons, Prospecting for Hash Functions, 2018.
    """
    bits = (bits ^ ((bits >> 16) & 0xFFFF)) * 0x7FEB352D
    bits = (bits ^ ((bits >> 15) & 0x1FFFF)) * (0x846CA68B - 2**32)
    return bits ^ ((bits >> 16) & 0xFFFF)
