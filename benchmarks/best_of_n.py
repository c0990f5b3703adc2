"""Drawing 8 frames from one prompt, against transformers' ``generate``; `verify` has the rest.

python -m benchmarks best_of_n                # all 16 codes, the shipped checkpoint
python -m benchmarks best_of_n --shape mid        # all 256 codes, 2 minutes a round
python -m benchmarks best_of_n --shape mid1024    # the first 32 of 1,024 codes
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import LogitsProcessor

from benchmarks.engine_frame import Cases, Size, frames, model, run, without_mask
from dynamics.inference.decode import DynamicCacheDecoder
from dynamics.inference.sampling import GREEDY, SamplingParams
from dynamics.inference.shared_prefix import SharedPrefixDecoder


class _CodesOnly(LogitsProcessor):
    """-inf for what is no code: transformers projects every word first."""

    def __init__(self, image_ids: torch.Tensor) -> None:
        self._image_ids = image_ids

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        kept = torch.full_like(scores, -torch.inf)
        kept[:, self._image_ids] = scores[:, self._image_ids]
        return kept


def cases(size: Size) -> tuple[Cases, Callable[[Mapping[str, Any]], Any]]:
    """The engines, and ``generate`` a frame at a time, N at once, and with a static cache."""
    vlm = model(size.shape)
    prompt = vlm.tokens.fdp_prompt(frames(vlm, 1), ["push the red ring left"])
    if size.shape == "mid1024":
        vlm.tokens.num_image_tokens = 32
    steps = vlm.tokens.num_image_tokens
    network = without_mask(vlm)
    sampling = SamplingParams(num_samples=size.samples, temperature=1.0)
    settings = {
        "max_new_tokens": steps, "top_k": 0, "pad_token_id": vlm.tokens.pad,
        "attention_mask": torch.ones_like(prompt), "eos_token_id": None,
        "logits_processor": [_CodesOnly(vlm.image_ids)],
    }  # fmt: skip

    @torch.inference_mode()
    def generate(times: int, **more: Any) -> torch.Tensor:
        drawn = [network.generate(prompt, **settings, **more) for _ in range(times)]
        return torch.cat(drawn)[:, prompt.shape[1] :] - int(vlm.image_ids[0])

    shared, growing = SharedPrefixDecoder(vlm, "fdp"), DynamicCacheDecoder(vlm, "fdp")

    def check(results: Mapping[str, Any]) -> str:
        # Peers draw with random numbers of their own: what is compared is the greedy frame.
        theirs = generate(1, do_sample=False).numpy()
        same = (shared.sample_codes(prompt, GREEDY, []).codes[0] == theirs).all()
        ours = [results[name].codes for name in ("shared_prefix", "dynamic_cache")]
        if not (same and (ours[0] == ours[1]).all()):
            raise SystemExit("the codes differ")
        return "the greedy codes; the engines' sampled codes"

    many: dict[str, Any] = {"num_return_sequences": size.samples, "do_sample": True}
    return {
        "shared_prefix": lambda: shared.sample_codes(prompt, sampling, [0]),
        "dynamic_cache": lambda: growing.sample_codes(prompt, sampling, [0]),
        "generate, a frame at a time": lambda: generate(size.samples, do_sample=True),
        "generate, one batch": lambda: generate(1, **many),
        "generate, one batch, static cache": lambda: generate(
            1, cache_implementation="static", **many
        ),
    }, check


if __name__ == "__main__":
    run("best_of_n", cases)
