"""Seconds and memory of a 7B model's stages on one GPU: what `dynamics plan` is held against.

    python benchmarks/gpu.py            # Chameleon-7B's shape, random weights, about a minute
    python benchmarks/gpu.py --tiny     # on a CPU; shows that it runs

Prints JSON. Neither depends on the weights; attention, cache, LoRA and loss are the product's own.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, ChameleonForConditionalGeneration

from benchmarks.encode import pictures, tokenizer
from dynamics.inference.decode import DynamicCacheDecoder
from dynamics.inference.sampling import SamplingParams
from dynamics.models.tokens import Rows
from dynamics.models.vlm import UnifiedVLM
from dynamics.training.loss import RowLoss
from dynamics.training.objectives import objective

LORA: dict[str, Any] = {
    "r": 16, "lora_alpha": 32, "lora_dropout": 0.05,
    "target_modules": [
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    ],
}  # fmt: skip
SHAPE = json.loads((ROOT / "dynamics/assets/published/anole-7b.json").read_text())
TINY = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 1000,
    "num_attention_heads": 2, "num_key_value_heads": 2,
}  # fmt: skip


def model(device: str, *, tiny: bool) -> UnifiedVLM:
    """The network with LoRA on random weights; its tokens are numbers without a text."""
    config = AutoConfig.for_model(**(SHAPE["config"] | (TINY if tiny else {})))
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        network = ChameleonForConditionalGeneration(config)
    torch.set_default_dtype(torch.float32)
    network = get_peft_model(network, LoraConfig(**LORA))
    codes = 100 if tiny else SHAPE["num_codes"]
    ids = torch.arange(10, 10 + codes)
    tokens: Any = SimpleNamespace(
        image_ids=ids, bos=1, eos=-1, num_image_tokens=0,  # no sentence ends early
        lead=lambda prompt: None,
        prompts=SimpleNamespace(action_tokens=SHAPE["action_tokens"]),
        code_rows=lambda prompt, target: Rows(torch.cat([prompt, ids[target]], 1)[:, :-1], target),
    )  # fmt: skip
    images: Any = SimpleNamespace(num_codes=codes)
    return UnifiedVLM(ROOT / "dynamics/assets/tiny-4x4", network, images, tokens, device)


def measured(run: Callable[[], object], device: str, repeats: int = 1) -> dict[str, float]:
    """Seconds of a run, after one that is not counted, and the most memory in bytes meanwhile."""
    run()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - start) / repeats
    found = {"seconds": seconds}
    if device == "cuda":
        found["bytes"] = torch.cuda.max_memory_allocated()
        found["reserved"] = torch.cuda.max_memory_reserved()
        torch.cuda.empty_cache()
    return found


def training(vlm: UnifiedVLM, rows: int, length: int, scored: int) -> Callable[[], None]:
    """Forward and backward of a micro-batch of the FDP, in bfloat16 by autocast."""
    loss = RowLoss(vlm, objective("nll"))
    ids = vlm.image_ids[torch.randint(len(vlm.image_ids), (rows, length), device=vlm.device)]
    labels = torch.full_like(ids, -100)
    labels[:, -scored:] = ids[:, -scored:]

    def run() -> None:
        with torch.autocast(vlm.device.type, torch.bfloat16):
            loss(ids, labels, None, "fdp").backward()
        vlm.network.zero_grad(set_to_none=True)

    return run


def main() -> None:
    """Measure and print JSON, a figure as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true")
    tiny = parser.parse_args().tiny
    device = "cpu" if tiny else "cuda"
    length, codes, steps = (40, 16, 3) if tiny else (2110, 1024, 16)
    found: dict[str, Any] = {"device": "cpu" if tiny else torch.cuda.get_device_name()}

    def measure(name: str, run: Callable[[], object], repeats: int = 1) -> None:
        try:
            found[name] = measured(run, device, repeats)
        except torch.OutOfMemoryError:
            found[name] = "out of memory"
            torch.cuda.empty_cache()
        sys.stderr.write(json.dumps({name: found[name]}) + "\n")

    images = tokenizer(device, tiny=tiny)
    frames = pictures(16, images.frame_px)
    drawn = images.encode(frames)
    measure("encode 16 frames", lambda: images.encode_with_features(frames), 2)
    measure("decode 16 frames", lambda: images.decode(drawn), 2)
    vlm = model(device, tiny=tiny)
    vlm.network.train()
    for rows in (1, 2, 3, 4):
        measure(f"train {rows} rows", training(vlm, rows, length, codes), 2)
    vlm.network.gradient_checkpointing_enable({"use_reentrant": False})
    measure("train 1 rows, checkpointing", training(vlm, 1, length, codes), 2)
    vlm.network.gradient_checkpointing_disable()
    vlm.network.eval()
    vlm.use = lambda name: None  # type: ignore[method-assign]  # the one adapter is active
    decoder = DynamicCacheDecoder(vlm, "fdp")
    for rows in (8, 32):
        prompt = torch.randint(10, 100, (rows, length - steps - 1))
        for count in (1, steps):
            sampling = SamplingParams(max_tokens=count)
            name = f"label {rows} pairs, {count} tokens"
            measure(name, lambda: decoder.sample_text(prompt, sampling, []))  # noqa: B023
    for samples in (8, 32):
        prompt = torch.randint(10, 100, (1, length - codes))
        for count in (1, steps):
            vlm.tokens.num_image_tokens = count
            sampling = SamplingParams(num_samples=samples, temperature=1.0)
            name = f"draw {samples} of 1, {count} codes"
            measure(name, lambda: decoder.sample_codes(prompt, sampling, [0]))  # noqa: B023
    target = np.zeros((16, codes), dtype=np.int64)
    prompt = torch.randint(10, 100, (16, length - codes))
    measure("score 16 rows", lambda: decoder.score_codes(prompt, target))
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
