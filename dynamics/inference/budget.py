"""Batches that fit into the memory of a device: bytes of a row by the model's shape.

`dynamics plan` counts with the same functions.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dynamics.inference.sampling import SamplingParams
from dynamics.models.vlm import UnifiedVLM

TEXT_BATCH = 256
"""Most sampled sentences per forward that pay."""
CODES_BATCH = 512
"""Most sampled frames per forward that pay."""
SCORE_BATCH = 64
"""Most rows per forward that pay when they are only scored: what fits a core's own cache is up to
twice as fast as 512 rows, and a large model keeps its GPU busy with as many."""
_F32 = 4
USED = 0.9
"""Share of a device's free memory that batches may take."""
_UNMEASURED = 0.5
"""The same on a CPU, and for the first batch of a kind on a GPU, which is measured."""
_SCORE_COPIES = 9
"""Copies of a token's scores while it is drawn: logits, at the temperature, noise and its bits,
sorted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of a network on which the bytes of a row depend."""

    num_layers: int
    width: int
    feed_forward: int
    cache_width: int
    """Number of key-value heads times their width."""
    weight_bytes: int
    """Bytes of a parameter."""


def cache_bytes(shape: Shape) -> int:
    """Bytes of keys and values a token."""
    return 2 * shape.num_layers * shape.cache_width * shape.weight_bytes


def layer_bytes(shape: Shape) -> int:
    """Bytes that a layer needs for a token: hidden states, gate, up and product, float32 norms."""
    d, f, p = shape.width, shape.feed_forward, shape.weight_bytes
    return p * (8 * d + 3 * f) + _F32 * (2 * d + f)


def drawn_bytes(shape: Shape, prompt: int, samples: int, steps: int, columns: int) -> int:
    """Bytes of a prompt whose samples are drawn: the larger one of prefill and decoding.

    Args:
        shape: of the network.
        prompt: its tokens.
        samples: of the prompt.
        steps: tokens of a sample.
        columns: words or codes to draw from.
    """
    cache = cache_bytes(shape)
    decoding = samples * ((prompt + steps) * cache + columns * _F32 * _SCORE_COPIES)
    return max(prompt * (cache + layer_bytes(shape)), decoding)


def scored_bytes(shape: Shape, tokens: int, answers: int, columns: int) -> int:
    """Bytes of a row that is given: a layer's for its tokens, or three times its logits."""
    return max(tokens * layer_bytes(shape), answers * columns * (shape.weight_bytes + 2 * _F32))


class Budget:
    """The batches of one model on its device.

    On a GPU the first batch of a kind takes half of what fits by the formulas, and the memory that
    it was seen to take decides on the next ones.
    """

    def __init__(self, model: UnifiedVLM) -> None:
        self._model = model
        config: Any = model.decoder.config
        heads = config.num_attention_heads
        head_width = getattr(config, "head_dim", None) or config.hidden_size // heads
        self.shape = Shape(
            num_layers=config.num_hidden_layers,
            width=config.hidden_size,
            feed_forward=config.intermediate_size,
            cache_width=config.num_key_value_heads * head_width,
            weight_bytes=next(model.decoder.parameters()).element_size(),
        )
        self._measured: dict[str, float] = {}

    def texts(self, prompt_BT: Tensor, sampling: SamplingParams) -> Iterator[slice]:
        """Parts of the prompts to draw sentences for."""
        num, steps = sampling.num_samples, self._model.tokens.prompts.action_tokens + 1
        row = drawn_bytes(self.shape, prompt_BT.shape[1], num, steps, len(self._model.text_ids))
        return self._parts("texts", len(prompt_BT), TEXT_BATCH // num, row)

    def frames(self, prompt_BT: Tensor, sampling: SamplingParams) -> Iterator[slice]:
        """Parts of the prompts to draw frames for."""
        most, row = CODES_BATCH // sampling.num_samples, self._frame_bytes(prompt_BT, sampling)
        return self._parts("frames", len(prompt_BT), most, row)

    def most_frames(self, prompt_BT: Tensor, sampling: SamplingParams) -> int:
        """Most prompts of this length to draw frames for at the same time."""
        most, row = CODES_BATCH // sampling.num_samples, self._frame_bytes(prompt_BT, sampling)
        return self._fit("frames", most, row)

    def _frame_bytes(self, prompt_BT: Tensor, sampling: SamplingParams) -> int:
        """Bytes of a prompt whose frames are drawn; guidance has two rows for one."""
        num, length = sampling.num_samples, self._model.tokens.num_image_tokens
        columns = self._model.images.num_codes
        row = drawn_bytes(self.shape, prompt_BT.shape[1], num, length, columns)
        return row * (1 if sampling.guidance == 1 else 2)

    def scored_texts(self, prompt_BT: Tensor) -> Iterator[slice]:
        """Parts of the prompts whose sentences are scored."""
        answers = self._model.tokens.prompts.action_tokens + 1
        return self._scored("scored texts", prompt_BT, answers, len(self._model.text_ids))

    def scored_frames(self, prompt_BT: Tensor) -> Iterator[slice]:
        """Parts of the prompts whose frames are scored."""
        length, columns = self._model.tokens.num_image_tokens, self._model.images.num_codes
        return self._scored("scored frames", prompt_BT, length, columns)

    def _scored(self, kind: str, prompt_BT: Tensor, answers: int, columns: int) -> Iterator[slice]:
        row = scored_bytes(self.shape, prompt_BT.shape[1] + answers, answers, columns)
        return self._parts(kind, len(prompt_BT), SCORE_BATCH, row)

    def _parts(self, kind: str, total: int, most: int, row_bytes: int) -> Iterator[slice]:
        """Slices of ``total`` rows, one to ``most`` each, for the caller to work on in turn."""
        start = 0
        while start < total:
            stop = min(total, start + self._fit(kind, most, row_bytes))
            before = self._watch(kind)
            yield slice(start, stop)
            if before is not None:
                taken = torch.cuda.max_memory_allocated(self._model.device) - before
                self._measured[kind] = taken / (row_bytes * (stop - start))
            start = stop

    def _fit(self, kind: str, most: int, row_bytes: int) -> int:
        fit = free_bytes(self._model.device) * self._share(kind) / row_bytes
        return max(1, min(most, int(fit)))

    def _share(self, kind: str) -> float:
        return USED / self._measured[kind] if kind in self._measured else _UNMEASURED

    def _watch(self, kind: str) -> int | None:
        """Bytes in use before a batch that is to be measured."""
        if self._model.device.type != "cuda" or kind in self._measured:
            return None
        torch.cuda.reset_peak_memory_stats(self._model.device)
        return torch.cuda.memory_allocated(self._model.device)


def free_bytes(device: torch.device) -> int:
    """Memory for a batch; on a CPU half of the RAM, whatever else runs, so that batches repeat."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + kept
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
