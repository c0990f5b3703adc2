"""Greedy sentences of pairs, against transformers' ``generate``.

python -m benchmarks label                # 64 pairs, the shipped checkpoint
python -m benchmarks label --shape mid    # 4 pairs
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from benchmarks.engine_frame import Cases, Size, frames, model, run
from dynamics.inference.decode import DynamicCacheDecoder
from dynamics.inference.sampling import SamplingParams
from dynamics.inference.shared_prefix import SharedPrefixDecoder

_TOKENS = 11


def cases(size: Size) -> tuple[Cases, Callable[[Mapping[str, Any]], Any]]:
    """The engines, and ``generate`` a pair at a time, in a batch, and with a static cache."""
    vlm = model(size.shape)
    rows = 64 if size.shape == "tiny" else 4
    source, target = frames(vlm, 2 * rows).reshape(2, rows, -1)
    prompt, greedy = vlm.tokens.idm_prompt(source, target), SamplingParams(max_tokens=_TOKENS)
    network, length = vlm.causal_lm, prompt.shape[1]
    settings = {"max_new_tokens": _TOKENS, "do_sample": False, "pad_token_id": vlm.tokens.pad}

    def ours(decoder: Any) -> list[list[int]]:
        return [text.ids for (text,) in decoder.sample_text(prompt, greedy, [])]

    @torch.inference_mode()
    def generate(size: int, **more: Any) -> list[list[int]]:
        found = []
        for part in torch.split(prompt, size):
            mask = torch.ones_like(part)
            ids = network.generate(part, attention_mask=mask, **settings, **more)
            found += [_sentence(row, vlm.tokens.eos) for row in ids[:, length:].tolist()]
        return found

    def check(results: Mapping[str, Any]) -> str:
        first, *others = results.values()
        if any(other != first for other in others):
            raise SystemExit(f"the sentences differ: {results}")
        return "all ids"

    shared, growing = SharedPrefixDecoder(vlm, "idm"), DynamicCacheDecoder(vlm, "idm")
    return {
        "shared_prefix": lambda: ours(shared),
        "dynamic_cache": lambda: ours(growing),
        "generate, a pair at a time": lambda: generate(1),
        "generate, one batch": lambda: generate(rows),
        "generate, one batch, static cache": lambda: generate(rows, cache_implementation="static"),
    }, check


def _sentence(ids: list[int], eos: int) -> list[int]:
    return ids[: ids.index(eos) + 1] if eos in ids else ids


if __name__ == "__main__":
    run("label", cases)
