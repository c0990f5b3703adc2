"""A LoRA step of the FDP, against peft's layers with transformers' loss and with the product's.

python -m benchmarks train                # 48 rows, the shipped checkpoint
python -m benchmarks train --shape mid    # 2 rows
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from peft import get_peft_model

from benchmarks.engine_frame import Cases, Size, frames, model, run, without_mask
from dynamics.core.config import LoraConfig
from dynamics.models.stack import Stack
from dynamics.training.backend import PlainEngine
from dynamics.training.loss import RowLoss
from dynamics.training.objectives import objective
from dynamics.training.trainable import adapter_config, trainable_parameters


def cases(size: Size) -> tuple[Cases, Callable[[Mapping[str, Any]], Any]]:
    """Three networks with equal weights and adapters, each with an optimizer of its own.

    peft's loss is over all words; the product's, over codes, is also measured on peft's layers.
    """
    num = 48 if size.shape == "tiny" else 2

    def step(kind: str) -> Callable[[], float]:
        vlm = model(size.shape)
        network = without_mask(vlm)
        torch.manual_seed(1)
        vlm.network = get_peft_model(network, adapter_config(LoraConfig(dropout=0.0))).train()
        merged = kind == "merged"
        weights = list(trainable_parameters(vlm.network).values())
        adam = torch.optim.AdamW(weights, lr=1e-4, fused=merged)
        stack = Stack(vlm.decoder, "default") if merged else None
        loss = RowLoss(vlm, objective("nll"), stack)
        engine = PlainEngine(loss, adam)
        source, target = frames(vlm, 2 * num).reshape(2, num, -1)
        rows = vlm.tokens.fdp_rows(source, ["push the red ring left"] * num, target)
        # transformers shifts the labels itself.
        shifted = torch.cat([torch.full_like(rows.labels[:, :1], -100), rows.labels[:, :-1]], 1)

        def take() -> float:
            if kind == "whole head":
                value = vlm.network(input_ids=rows.ids, labels=shifted).loss
            else:
                value = loss(rows.ids, rows.labels, None, "fdp") / int((rows.labels >= 0).sum())
            engine.backward(value)
            engine.step()
            return float(value.detach())

        return take

    def check(results: Mapping[str, Any]) -> str:
        apart = abs(results["merged products"] - results["peft, the same loss"])
        if apart > 1e-5:
            raise SystemExit(f"losses differ by {apart}")
        return f"the last loss of the first two to {apart:.1e}; the third is over all words"

    return {
        "merged products": step("merged"),
        "peft, the same loss": step("peft"),
        "peft, transformers' loss": step("whole head"),
    }, check


if __name__ == "__main__":
    run("train", cases)
