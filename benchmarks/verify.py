"""Log-probabilities of one action for 8 candidates of a frame, against transformers' ``forward``.

python -m benchmarks verify                # 8 sources, the shipped checkpoint
python -m benchmarks verify --shape mid    # 1 source
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from benchmarks.engine_frame import Cases, Size, frames, model, run
from dynamics.inference.decode import DynamicCacheDecoder
from dynamics.inference.shared_prefix import SharedPrefixDecoder
from dynamics.models.tokens import IGNORE

_ACTION = "push the red ring left"


def cases(size: Size) -> tuple[Cases, Callable[[Mapping[str, Any]], Any]]:
    """The engines, and ``forward`` with its whole head a row at a time and in a batch."""
    vlm = model(size.shape)
    sources = 8 if size.shape == "tiny" else 1
    target = frames(vlm, sources * size.samples)
    source = target[::-1][:sources].repeat(size.samples, 0)
    prompt, network = vlm.tokens.idm_prompt(source, target), vlm.causal_lm
    texts = [vlm.tokens.sentence_ids(_ACTION)] * len(prompt)
    rows = vlm.tokens.text_rows(prompt, texts)

    @torch.inference_mode()
    def forward(size: int) -> np.ndarray:
        sums = []
        for ids, labels in zip(
            torch.split(rows.ids, size), torch.split(rows.labels, size), strict=True
        ):
            # transformers' own mask takes the codes out of the softmax, as the engines do.
            logp = network(input_ids=ids, use_cache=False).logits.log_softmax(-1)
            values = logp.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
            sums.append(values.masked_fill(labels == IGNORE, 0).double().sum(-1).numpy())
        return np.concatenate(sums)

    def check(results: Mapping[str, Any]) -> str:
        first, *others = results.values()
        worst = max(float(abs(first - other).max()) for other in others)
        if worst > 1e-3 or any((first.argmax() != other.argmax()) for other in others):
            raise SystemExit(f"log-probabilities differ by {worst}")
        return f"log p to {worst:.1e}, the same best candidate"

    shared, growing = SharedPrefixDecoder(vlm, "idm"), DynamicCacheDecoder(vlm, "idm")
    return {
        "shared_prefix": lambda: shared.score_text(prompt, texts),
        "dynamic_cache": lambda: growing.score_text(prompt, texts),
        "forward, a row at a time": lambda: forward(1),
        "forward, batches of 8": lambda: forward(size.samples),
    }, check


if __name__ == "__main__":
    run("verify", cases)
